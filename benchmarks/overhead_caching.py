"""Compares `itr features` with the teacher's forward pass; part of `overheads.py`."""

from __future__ import annotations

import io
import os
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from itr.data.features.headers import FeaturePaths, Header
from itr.data.features.reader import ChunkReader, load_chunks
from itr.data.features.writer import FeatureWriter
from itr.data.shards.locations import find_split
from itr.data.shards.schema import data_identity
from itr.passes.features import encode
from itr.teachers.base import Modality, Teacher
from itr.teachers.load import load_teacher
from itr.types import Tokens
from measuring import Line, Rounds, device, side_by_side
from overhead_parts import Sizes, bf16, image_teacher, scenes, text_teacher

SHARES = {"forward pass alone": "bare", "reading alone, in one process": "reading"}
# With a GPU all cores but two read, as in a real run; on a CPU the cores are needed for the forward pass.
WORKERS = max(2, len(os.sched_getaffinity(0)) - 2) if device() == "cuda" else 2


def caching_lines(folder: Path, size: Sizes, rounds: int) -> list[Line]:
    """Compare `itr features` with the teacher's forward pass, on prepared inputs and including decoding."""
    images, batch = size.cached
    shards = scenes(folder / "large", images, 176)
    precision = "bf16" if bf16() else "32"
    lines = []
    for modality in ("image", "text"):
        image = modality == "image"
        name = image_teacher(folder / "vit", size) if image else text_teacher(folder / "bert", shards, size.teacher)[0]
        teacher = load_teacher(modality, name, device=device(), precision=precision)
        lines += caching(modality, teacher, shards, folder / "features", batch, rounds)
    return lines


def caching(modality: Modality, teacher: Teacher, shards: str, out: Path, batch: int, rounds: int) -> list[Line]:
    """Return the lines of one modality."""
    split = find_split(shards, "train")
    rows = split.captions if modality == "text" else split.images
    header = Header("a teacher", modality, teacher.width, rows, data_identity(split))

    def reader() -> ChunkReader:
        todo = list(range(-(-rows // batch)))
        return ChunkReader(split, modality, batch, todo, teacher.transform, 10**8, None, teacher.tokenizer)

    ready = [chunk.inputs for chunk in reader()]  # type: ignore[union-attr]

    def forward(inputs: Any) -> torch.Tensor:
        if not isinstance(inputs, Tokens):
            return teacher.features(inputs)
        ids, mask = inputs.ids.to(device()), inputs.mask.to(device())
        with torch.inference_mode(), torch.autocast(device(), teacher.dtype, enabled=teacher.dtype is not None):
            return teacher.encoder.run(Tokens(ids, mask))

    def ours() -> None:
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            writer = FeatureWriter(FeaturePaths(Path(folder), "train", modality), header, batch)
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                chunks = reader()
                encode(teacher, chunks, load_chunks(chunks, WORKERS, 0), writer)

    def bare() -> None:
        for inputs in ready:
            forward(inputs)

    def decoding() -> None:
        for chunk in reader():
            forward(chunk.inputs)  # type: ignore[union-attr]

    alternatives = {"bare": bare, "reading": lambda: [*reader()], "decoding": decoding, "ours": ours}
    if device() == "cuda":
        alternatives["fed"] = lambda: [chunk.number for chunk in load_chunks(reader(), WORKERS, 0)]
    taken = side_by_side(alternatives, rounds)
    return [rate_line(modality, rows, taken, way) for way in ("bare", "decoding")]


def rate_line(modality: str, rows: int, taken: Rounds, way: str) -> Line:
    """Compare our rows per second with those of a bare loop."""
    what, unit = ("images", "images/s") if modality == "image" else ("captions", "captions/s")
    line = Line(f"features of {what}", unit, rows / taken.median("ours"), at_least=0.95)
    line.beside = {
        "bare": "the bare forward pass on prepared inputs",
        "decoding": "a loop that reads, decodes or tokenizes, and runs the forward pass",
    }[way]
    line.what += (
        ", compared with the forward pass" if way == "bare" else ", compared with reading and forward pass in one loop"
    )
    line.theirs, line.ratio = rows / taken.median(way), taken.ratio(way, "ours")
    line.limit, line.limit_by = rows / taken.median("bare"), "the bare forward pass, as if reading were free"
    if "fed" in taken.seconds:
        line.limit = rows / max(taken.median("bare"), taken.median("fed"))
        line.limit_by = f"the slower of the bare forward pass and {WORKERS} freshly started workers that read"
    if way == "bare" and device() == "cpu":
        work = taken.median("bare") / (taken.median("bare") + taken.median("reading"))
        line.remark = (
            f"If the workers have no cores of their own, reading slows down the forward pass: the ratio on one core "
            f"would be {work:.2f}. Reading without workers was tried and costs the same."
        )
    if line.met is False:
        shares = {**SHARES, **({f"reading alone, {WORKERS} workers": "fed"} if "fed" in taken.seconds else {})}
        line.profile = {name: taken.median(key) / taken.median("ours") for name, key in shares.items()}
    return line
