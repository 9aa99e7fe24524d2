"""Shared code of the benchmarks: alternating measurements, result lines with bounds, and the result files.

Absolute times on a shared machine mean little. The programs to compare therefore take turns within each round, and a
ratio is the median of the ratios of all rounds: other load on the machine affects both sides of a round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass
class Line:
    """One measurement, its reference, and its bounds.

    Attributes:
        what: the quantity that is measured.
        unit: of `ours`, `theirs` and `limit`.
        ours: our value; None if it was not measured.
        beside: the reference from the same run: another program or a bare loop.
        theirs: value of the reference.
        limit: the best value that operations and bytes allow.
        limit_by: how the limit is calculated.
        ratio: `ours` divided by `theirs`; the median over rounds if there are rounds.
        at_least: lower bound of the ratio, or of `ours` if there is no ratio.
        at_most: upper bound, likewise.
        unmeasured: why there is no value.
        remark: what a reader should know, such as what was tried if the bound is missed.
        profile: if the bound is missed, the share of the time by cause.
    """

    what: str
    unit: str
    ours: float | None = None
    beside: str = ""
    theirs: float | None = None
    limit: float | None = None
    limit_by: str = ""
    ratio: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    unmeasured: str = ""
    remark: str = ""
    profile: dict[str, float] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Return whether the value meets its bounds; None if it has no bounds or was not measured."""
        value = self.ours if self.ratio is None else self.ratio
        if value is None or (self.at_least is None and self.at_most is None):
            return None
        low = self.at_least is None or value >= self.at_least
        return low and (self.at_most is None or value <= self.at_most)


@dataclass
class Rounds:
    """The seconds that each alternative took in each round."""

    seconds: dict[str, list[float]]

    def median(self, alternative: str) -> float:
        """Return the median seconds of an alternative."""
        return statistics.median(self.seconds[alternative])

    def ratio(self, above: str, below: str) -> float:
        """Return the median over rounds of the ratio of seconds."""
        pairs = zip(self.seconds[above], self.seconds[below], strict=True)
        return statistics.median(a / b for a, b in pairs)


def side_by_side(alternatives: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1) -> Rounds:
    """Run every alternative once per round, in reverse order in every second round."""
    for _ in range(warmup):
        for alternative in alternatives.values():
            alternative()
    taken: dict[str, list[float]] = {name: [] for name in alternatives}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}: {', '.join(alternatives)}", file=sys.stderr, flush=True)
        for name in list(alternatives) if number % 2 == 0 else reversed(list(alternatives)):
            taken[name].append(seconds(alternatives[name]))
    return Rounds(taken)


def seconds(work: Callable[[], object]) -> float:
    """Return how long a call takes, including the GPU work that it starts."""
    synchronise()
    began = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - began


def synchronise() -> None:
    """Wait for the GPU if this process has used it. In a fork of such a process, even querying CUDA fails."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def device() -> str:
    """Return `cuda` if there is a GPU, else `cpu`. The scripts choose their sizes accordingly."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def machine() -> dict[str, str]:
    """Describe the machine that the measurements were made on."""
    found = {
        "cpu": _cpu_name(),
        "cores": str(len(os.sched_getaffinity(0))),
        "torch": version("torch"),
        "torch threads": str(torch.get_num_threads()),
        "system": platform.system(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def arguments(text: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark: `--rounds`, `--quick` and `--out`."""
    parser = argparse.ArgumentParser(description=(text or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, only to check that the script runs")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / device(), help="folder for the JSON file with the results"
    )
    return parser


def write(folder: Path, name: str, lines: list[Line], settings: dict[str, Any], figures: dict[str, Any]) -> None:
    """Print the lines and write them to `folder/name.json`, from which `page.py` builds the docs.

    Args:
        folder: where to write the file.
        name: name of the benchmark.
        lines: the results, in the order of the page.
        settings: sizes, rounds and data.
        figures: other measurements, such as the points of a curve.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outcome = {
        "machine": machine(),
        "settings": settings,
        "lines": [asdict(line) for line in lines],
        "figures": figures,
    }
    (folder / f"{name}.json").write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    for line in lines:
        print(summary(line))


def summary(line: Line) -> str:
    """Return a line as text for the terminal."""
    if line.ours is None:
        return f"{line.what}: not measured: {line.unmeasured}"
    words = f"{line.what}: {line.ours:.4g} {line.unit}"
    words += f"; {line.beside}: {line.theirs:.4g}" if line.theirs is not None else ""
    words += f"; ratio {line.ratio:.3g}" if line.ratio is not None else ""
    return words + {True: " (met)", False: " (MISSED)", None: ""}[line.met]


def read(path: Path) -> tuple[dict[str, Any], list[Line]]:
    """Read a result file; return its content and its lines."""
    outcome = json.loads(path.read_text(encoding="utf-8"))
    return outcome, [Line(**line) for line in outcome["lines"]]
