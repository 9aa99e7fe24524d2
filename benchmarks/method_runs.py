"""What the comparisons of methods share: running itr, features of a teacher, the folder of a run, a table of means."""

from __future__ import annotations

import contextlib
import io
import os
import re
import statistics
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

import itr.cli
from itr.data.features.headers import FeaturePaths, Header
from itr.data.features.writer import FeatureWriter


def itr_command(*arguments: str) -> None:
    """Run an itr command in this process; raise with its output if it fails."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = itr.cli.main(arguments)
    if status:
        raise RuntimeError(f"itr {' '.join(arguments)}\n{output.getvalue()[-4000:]}")


def workers(jobs: int) -> ProcessPoolExecutor:
    """Processes with one thread each, which stay, so that torch is imported once a process and not once a run."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the processes when they import torch
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))


def write_features(paths: FeaturePaths, teacher: str, ids: Sequence[int], rows: np.ndarray, data: str) -> None:
    """Write features [N, D] of the shards with identity `data` as `itr features` does, unless they exist."""
    if paths.header.is_file():
        return
    header = Header(teacher, paths.modality, rows.shape[1], len(ids), data)
    writer = FeatureWriter(paths, header, chunk=len(ids))
    writer.write(0, list(ids), torch.from_numpy(rows), list(ids), [])
    writer.finish()


def folder_of(out: Path, name: str, seed: int) -> Path:
    """Return the run folder of a variant and seed."""
    return out / re.sub(r"[^\w+]+", "_", name) / str(seed)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds, as a cell of a table."""
    found = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{found}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as a Markdown table."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
