"""Measures time, memory and exactness of a large batch's loss, with and without blocks of rows, without towers.

    python benchmarks/loss_at_scale.py

This is the forward and backward pass with and without `model.large_batch.loss_chunk`, down to the embeddings. Memory is
the rise of the peak above what was in use before: of the process (VmHWM) on a CPU, of the allocator on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from typing import Any

import torch

from loss_cases import CASES, TEACHER, WIDTH, Case, Loss, difference
from loss_counts import BY, counted, row_of
from loss_profile import STATUS, peak_of, shares_of
from measuring import Line, Rounds, arguments, device, side_by_side, write

GPU_BATCH, LARGEST = 16_384, 65_536
MEGABYTE = 1e6
TRAINING_PRECISION = "high"  # the matrix precision that `itr fit` sets
TRIED = (
    "In blocks, the caption-to-image scores need a separate product, with two more in the backward pass. "
    "Tried: computing each block's gradients at once instead of computing the block twice; normalising once instead of "
    "in each block; losses with half the passes, which help the loss without blocks more; blocks of 128 to 1,024 rows. "
    "Not tried: a first round over all blocks for the column sums, which reduces six products to four, but adds passes "
    "and needs a second form of each objective. On a GPU, where a pass costs much of a product, it would gain little."
)


def memory(points: list[tuple[str, int, int]]) -> list[float]:
    """Return the rise of the peak memory in a step, in bytes, for each case, batch and chunk.

    On a CPU the measurement runs in its own process.
    """
    if device() == "cpu" and "--memory" not in sys.argv:
        environment = {
            **os.environ,
            "MALLOC_MMAP_THRESHOLD_": "65536",
        }  # return freed memory to the system: no fragmentation
        command = [sys.executable, __file__, "--memory", json.dumps(points)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return list(map(float, json.loads(done.stdout)))
    for name in CASES:
        Loss(name, 64).step(16)  # lets libraries allocate their own buffers
    found = []
    for name, batch, chunk in points:
        found.append(peak_of(partial(Loss(name, batch).step, chunk)))
    return found


def time_lines(batch: int, chunks: dict[str, int], rounds: int) -> list[Line]:
    """Return the seconds of each case with and without blocks, and the limit by operations and bytes."""
    scores, rows = torch.ones(batch, batch, device=device()), torch.randn(batch, WIDTH, device=device())
    bare = side_by_side({"product": lambda: rows @ rows.T, "copy": scores.clone}, rounds)
    del scores
    lines = []
    for name, case in CASES.items():
        loss, chunk = Loss(name, batch), chunks[name]
        alternatives = {"plain": partial(loss.step, 0), "blocks": partial(loss.step, chunk)}
        what = f"{name}, {batch:,} pairs in blocks of {chunk:,}: time"
        line = time_line(what, case, side_by_side(alternatives, rounds), bare)
        if line.met is False:
            line.profile, line.remark = shares_of(alternatives["blocks"]), TRIED
        lines.append(line)
    return lines


def time_line(what: str, case: Case, found: Rounds, bare: Rounds) -> Line:
    """Return a line for the seconds of one case."""
    limit = case.products * bare.median("product") + case.matrices * 2.5 * bare.median("copy")
    by = (
        f"{case.products:.3g} products of B x B x {WIDTH} ({case.least:.3g} without blocks) at the rate of a single "
        f"one, plus five reads or writes of each score matrix and its gradient ({case.matrices} of each), at the rate "
        "of a copy"
    )
    ratio = found.ratio("blocks", "plain")
    ours, theirs = found.median("blocks"), found.median("plain")
    return Line(what, "s", ours, "without blocks", theirs, limit, by, ratio, at_most=1.25)


def exactness(batch: int) -> list[Line]:
    """Return how much losses and gradients in blocks differ from those without blocks."""
    torch.set_float32_matmul_precision("highest")  # TF32 would round the two computations differently
    lines = []
    for kind, bound in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        worst = max(difference(name, batch, kind) for name in CASES)
        name = str(kind).removeprefix("torch.")
        what = f"All cases, {batch:,} pairs, {name}: largest relative difference in loss and gradients"
        limit = torch.finfo(kind).eps
        lines.append(Line(what, "", worst, limit=limit, limit_by="rounding error of a single number", at_most=bound))
    torch.set_float32_matmul_precision(TRAINING_PRECISION)
    return lines


def measured_memory(batch: int, chunks: dict[str, int], bound: float | None) -> list[Line]:
    """Return the megabytes of each case with and without blocks."""
    points = [(name, batch, rows) for name in CASES for rows in (chunks[name], 0) if rows or batch < LARGEST]
    found = dict(zip(points, memory(points), strict=True))
    lines = []
    for name, chunk in chunks.items():
        what = f"{name}, {batch:,} pairs in blocks of {chunk:,}: extra memory"
        ours, theirs = found[name, batch, chunk] / MEGABYTE, found.get((name, batch, 0))
        plain = None if theirs is None else theirs / MEGABYTE
        limit = least_memory(name, batch, chunk) / MEGABYTE
        lines.append(Line(what, "MB", ours, "without blocks", plain, limit, LEAST, at_most=bound))
    return lines


LEAST = "one block of scores and its gradient, and the gradients of all embeddings"


def least_memory(name: str, batch: int, chunk: int) -> float:
    """Return the minimum number of bytes for blocks of this many rows."""
    sides = 4 if CASES[name].cusa else 2
    return 4 * (2 * chunk * batch + sides * batch * WIDTH)


def calculated_memory(batch: int, chunk: int) -> tuple[list[Line], list[dict[str, Any]]]:
    """Calculate megabytes at a GPU's sizes from two measured points, and check the formula with a third."""
    points = [(batch, chunk // 2), (batch, chunk * 2), (2 * batch, chunk)]
    found = memory([(name, *point) for name in CASES for point in points])
    lines, table = [], []
    for number, (name, case) in enumerate(CASES.items()):
        low, high, check = found[3 * number : 3 * number + 3]
        block = (high - low) / (chunk * 2 - chunk // 2) / batch  # bytes for each of B x R
        side = (low - block * batch * (chunk // 2)) / batch  # bytes for each of B
        for size in (GPU_BATCH, LARGEST):
            rows = case.chunk
            what = (
                f"{name}, {size:,} pairs in blocks of {rows:,}: extra memory, calculated from measurements on this CPU"
            )
            ours, limit = size * (block * rows + side) / MEGABYTE, least_memory(name, size, rows) / MEGABYTE
            bound = 512.0 if size == GPU_BATCH else None
            lines.append(Line(what, "MB", ours, limit=limit, limit_by=LEAST, at_most=bound))
        predicted = 2 * batch * (block * chunk + side) / MEGABYTE
        table.append({"case": name, "matrices per block": block / 4, "matrices of embeddings": side / 4 / WIDTH,
                      f"MB at {2 * batch:,} pairs, calculated": predicted, "measured": check / MEGABYTE})  # fmt: skip
    return lines, table


def on_a_cpu(options: argparse.Namespace) -> tuple[list[Line], dict[str, Any]]:
    """Measure small batches and calculate large ones."""
    batch, chunk = (256, 32) if options.quick else (4096, 512)
    chunks = dict.fromkeys(CASES, chunk)
    lines = time_lines(batch, chunks, options.rounds) + exactness(256 if options.quick else 1024)
    if not STATUS.exists():
        return [*lines, Line("Extra memory", "MB", at_most=512, unmeasured="needs Linux's /proc")], {}
    lines += measured_memory(batch, chunks, 512)
    calculated, table = calculated_memory(batch, chunk)
    predicted, counts = counted_for_a_gpu(batch if options.quick else GPU_BATCH)
    return lines + predicted + calculated, {"Components of the memory": table, "Counted for a GPU": counts}


def counted_for_a_gpu(batch: int) -> tuple[list[Line], list[dict[str, Any]]]:
    """Return the lines that need a GPU, with the limits that can be counted without one."""
    lines, table = [], []
    for name, case in CASES.items():
        blocks, plain = (counted(name, batch, chunk) for chunk in (case.chunk, 0))
        table += [row_of(name, chunk, found) for chunk, found in ((0, plain), (case.chunk, blocks))]
        what = f"{name}, {batch:,} pairs in blocks of {case.chunk:,}: time"
        ratio = blocks.seconds / plain.seconds
        remark = f"By this count {ratio:.3g} times the time without blocks, if no block stayed in the GPU's cache."
        line = Line(what, "s", beside="without blocks", at_most=1.25, unmeasured="needs a GPU", remark=remark)
        line.limit, line.limit_by = blocks.seconds, BY
        lines.append(line)
    return lines, table


def on_a_gpu(options: argparse.Namespace) -> tuple[list[Line], dict[str, Any]]:
    """Measure both batch sizes."""
    batch, largest = (512, 1024) if options.quick else (GPU_BATCH, LARGEST)
    chunks = {name: case.chunk // (4 if options.quick else 1) for name, case in CASES.items()}
    lines = time_lines(batch, chunks, options.rounds) + measured_memory(batch, chunks, 512)
    lines += exactness(1024) + measured_memory(largest, chunks, None)
    for name, chunk in chunks.items():
        found = side_by_side({"blocks": partial(Loss(name, largest).step, chunk)}, options.rounds)
        lines.append(Line(f"{name}, {largest:,} pairs in blocks of {chunk:,}: time", "s", found.median("blocks")))
    return lines, {f"{batch:,} pairs by rows per block": by_rows(batch, options.rounds)}


def by_rows(batch: int, rounds: int) -> list[dict[str, Any]]:
    """Return the seconds and memory of each case for growing blocks of rows, up to all rows."""
    table = []
    for name in CASES:
        loss, sizes = Loss(name, batch), [batch // part for part in (128, 64, 32, 16, 8, 4)]
        found = side_by_side({str(rows): partial(loss.step, rows) for rows in (*sizes, batch)}, rounds)
        for rows in (*sizes, batch):
            more = peak_of(partial(loss.step, rows)) / MEGABYTE
            table.append({"case": name, "rows": rows, "seconds": found.median(str(rows)), "MB": more})
    return table


def main() -> None:
    """Run all measurements and write the results."""
    parser = arguments(__doc__)
    parser.add_argument("--memory", type=json.loads, help="points to measure; used internally")
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(memory(options.memory)))
        return
    torch.set_float32_matmul_precision(TRAINING_PRECISION)
    lines, figures = on_a_gpu(options) if device() == "cuda" else on_a_cpu(options)
    settings = {"rounds": options.rounds, "width": WIDTH, "teacher width": TEACHER}
    write(options.out, "loss_at_scale", lines, settings, figures)


if __name__ == "__main__":
    main()
