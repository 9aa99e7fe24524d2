"""Measures how time and memory grow with batch, gallery, caption length, shards, workers and processes.

    python benchmarks/cost_curves.py

Every point is measured and every curve is fitted to its points. The cost of epochs is calculated (see costs.py).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in `itr`: spinning threads take cores from others

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import costs
import curve_data
import curve_points as points
from curves import Fit, Point, alone, fitted, measured
from measuring import Line, arguments, device, write

Rows = list[dict[str, Any]]
SECONDS = "seconds"
MEMORY = "memory, MiB"


@dataclass
class Sizes:
    """The points of each curve.

    Attributes:
        batch: pairs in a training step.
        loss: pairs for the loss alone.
        gallery: images, with five captions each.
        words: length of captions.
        shards: shards in a split.
        workers: decoding workers.
        processes: processes that train together on CPUs.
        images: images that the workers read.
        words_of_step: length of captions in a training step.
        joined: pairs per process.
        captions: captions in a batch of equal length.
        product: side of the bare matrix product.
    """

    batch: list[int]
    loss: list[int]
    gallery: list[int]
    words: list[int]
    shards: list[int]
    workers: list[int]
    processes: list[int]
    images: int
    words_of_step: int = 32
    joined: int = 32
    captions: int = 64
    product: int = 1024


SHARDS = [10, 100, 1000, 3000, 10_000]
SMALL = Sizes(
    [16, 32, 64, 128, 192], [1024, 1536, 2048, 3072, 4096], [500, 1000, 2000, 3000, 4000], [8, 16, 32, 48, 64],
    SHARDS, [0, 1, 2], [1, 2, 3], 1024,
)  # fmt: skip
QUICK = Sizes(
    [2, 4, 8], [64, 128, 256], [50, 100, 200], [4, 8, 16], [10, 100], [0, 1, 2], [1, 2], 128, joined=4, captions=4
)
LARGE = Sizes(
    [128, 256, 512, 1024, 2048], [4096, 8192, 16384, 32768], [4000, 8000, 16_000, 32_000], [16, 32, 48, 77], SHARDS,
    [0, 1, 2, 4, 8], [1, 2, 3, 4], 8192, captions=1024, product=8192,
)  # fmt: skip


@dataclass
class Curve:
    """Points over one size, the curve fitted to them, and the rate of a bare matrix product measured with them."""

    x: list[int]
    found: list[Point]
    powers: tuple[int, ...] = (0, 1)
    rate: float = 0.0

    @property
    def time(self) -> Fit:
        """Return the fit of the seconds."""
        return fitted([*map(float, self.x)], [point.seconds for point in self.found], self.powers)

    @property
    def memory(self) -> Fit:
        """Return the fit of the memory in MiB."""
        return fitted([*map(float, self.x)], [max(point.mebibytes, 0.01) for point in self.found], self.powers)

    def rows(self, name: str) -> Rows:
        """Return the points and the fitted values as table rows."""
        time = self.time
        return [
            {
                name: x,
                SECONDS: p.seconds,
                "fitted": sum(c * x**k for k, c in time.coefficients.items()),
                MEMORY: p.mebibytes,
            }
            for x, p in zip(self.x, self.found, strict=True)
        ]


def curve(
    make: Callable[[int], Callable[[], object]], x: list[int], powers: tuple[int, ...], rounds: int, bare: partial[Any]
) -> Curve:
    """Measure a curve, with a bare matrix product before and after it."""
    before = measured(bare, max(5, rounds)).seconds
    found = [measured(partial(make, size), rounds) for size in x]
    taken = (before + measured(bare, max(5, rounds)).seconds) / 2
    return Curve(x, found, powers, 2 * bare.args[0] ** 3 / taken)


def line(what: str, found: Curve, per: int, operations: float, letter: str) -> Line:
    """Compare the time added per unit of x with a bare matrix product of as many operations."""
    power = max(found.powers)
    own, bare = per * found.time.coefficients[power], operations / found.rate
    result = Line(what, "ms", 1e3 * own, "bare product with as many operations", 1e3 * bare, 1e3 * bare)
    rate = f"{found.rate / 1e9:,.0f} GFLOP/s"
    result.limit_by = f"{operations:.3g} operations at the {rate} of a bare product, measured before and after"
    result.ratio, result.remark = own / bare, found.time.summary("ms", letter, 1e3)
    if power > 1:
        straight = replace(found, powers=(0, 1)).time.residual
        result.remark += f" A straight line has a largest residual of {100 * straight:.0f} %."
    return result


def memory_line(what: str, found: Curve, per: int, letter: str) -> Line:
    """Return the memory added per unit of x."""
    result = Line(what, "MiB", per * found.memory.coefficients[max(found.powers)])
    result.remark = found.memory.summary("MiB", letter)
    return result


def computing(sizes: Sizes, rounds: int) -> tuple[list[Line], dict[str, Rows]]:
    """Measure the curves of batch, loss, caption length and gallery."""
    words, width, cuda = sizes.words_of_step, 512, device() == "cuda"
    towers = partial(points.product, sizes.product, torch.bfloat16 if cuda else torch.float32)
    plain = partial(points.product, sizes.product, torch.float32)
    step = curve(lambda size: points.step(size, words), sizes.batch, (0, 1), rounds, towers)
    loss = curve(lambda size: points.loss(size, width), sizes.loss, (0, 2), rounds, plain)
    text = curve(lambda length: points.text_tower(sizes.captions, length), sizes.words, (0, 1), rounds, towers)
    ranks = curve(lambda images: points.ranks(images, width), sizes.gallery, (0, 2), rounds, plain)
    of_pair = alone(partial(points.step_operations, words))
    low, high = sizes.words[0], sizes.words[-1]
    of_words = alone(partial(points.text_operations, high)) - alone(partial(points.text_operations, low))
    of_word = sizes.captions * of_words / (high - low)
    straight = replace(ranks, powers=(0, 1))  # only the memory of embeddings grows, that of a tile does not
    million = "a million scores (N images by 5N captions)"
    lines = [
        line("Training step: each additional pair", step, 1, of_pair, "B"),
        memory_line("Training step: memory of each additional pair", step, 1, "B"),
        line("Loss (InfoNCE, width 512): a million scores (B²)", loss, 10**6, 6e6 * width, "B"),
        memory_line("Loss: memory per million scores (one matrix is 3.8 MiB)", loss, 10**6, "B"),
        line(f"Text tower, {sizes.captions} captions: each additional word", text, 1, of_word, "L"),
        memory_line(f"Text tower, {sizes.captions} captions: memory of each additional word", text, 1, "L"),
        line(f"Exact ranks, width {width}: {million}", ranks, 200_000, 2e6 * width, "N"),
        memory_line(f"Exact ranks, width {width}: memory of each additional 1,000 images", straight, 1000, "N"),
    ]
    return lines, {
        "Training step by batch": step.rows("pairs"),
        "Loss by batch": loss.rows("pairs"),
        "Text tower by caption length": text.rows("words"),
        "Exact ranks by gallery": ranks.rows("images"),
    }


def shards(sizes: Sizes, rounds: int) -> tuple[list[Line], dict[str, Rows]]:
    """Measure the curve of the number of shards, from `find_split` to the first batch of an epoch."""
    found = []
    for number in sizes.shards:
        with curve_data.shards(number) as root:
            found.append(measured(partial(curve_data.opening, root), rounds))
    curve = Curve(sizes.shards, found)
    time = Line("Starting an epoch: each additional 1,000 shards", "ms", 1e6 * curve.time.coefficients[1])
    time.remark = curve.time.summary("ms", "shards", 1e3)
    memory = memory_line("Starting an epoch: memory of each additional 1,000 shards", curve, 1000, "shards")
    return [time, memory], {"Starting an epoch by shards": curve.rows("shards")}


def workers(sizes: Sizes, rounds: int) -> tuple[list[Line], dict[str, Rows], float]:
    """Measure the curve of the number of workers; also return the images per second without workers."""
    with tempfile.TemporaryDirectory() as folder:
        curve_data.photographs(Path(folder), sizes.images)
        rates = {number: alone(partial(curve_data.input_rate, folder, number, rounds)) for number in sizes.workers}
    cores = len(os.sched_getaffinity(0))
    most = max(number for number in rates if number <= max(1, cores))
    result = Line(f"Images per second, {most} workers", "images/s", rates[most], "one worker", rates[1])
    result.ratio, result.limit = rates[most] / rates[1], most * rates[1]
    result.limit_by = f"{most} times one worker; the workers share the machine's {cores} cores with the main process"
    rows = [{"workers": n, "images/s": rate, "relative to one worker": rate / rates[1]} for n, rate in rates.items()]
    return [result], {"Input by workers (JPEG of 341 by 256 to 224)": rows}, rates[0]


def processes(sizes: Sizes, rounds: int) -> tuple[list[Line], dict[str, Rows]]:
    """Measure the curve of the number of processes that train together on CPUs over gloo."""
    rows, width = [], 128
    for number in sizes.processes:
        apart, joined = points.together(number, sizes.joined, sizes.words_of_step, rounds)
        gathered = (number - 1) * sizes.joined * (2 * width * 4 + 8)
        rows.append(
            {
                "processes": number,
                "step without communication, s": apart,
                "DDP step, s": joined,
                "gathered, bytes": gathered,
            }
        )
    joined, apart = rows[1]["DDP step, s"], rows[1]["step without communication, s"]
    result = Line(
        "Step of 2 processes (gloo, CPU)", "s", joined, "2 without communication", apart, ratio=joined / apart
    )
    result.remark = (
        f"One process alone: {rows[0]['DDP step, s']:.3g} s. The processes share the machine's "
        f"{len(os.sched_getaffinity(0))} cores, with one thread each. With more processes than cores they wait for "
        "each other, as the column without communication shows."
    )
    return [result], {f"Step by processes, {sizes.joined} pairs each": rows}


def main() -> None:
    """Run all measurements, print and write the results."""
    options = arguments(__doc__, rounds=5).parse_args()
    sizes = QUICK if options.quick else LARGE if device() == "cuda" else SMALL
    torch.set_float32_matmul_precision("high")  # as training does
    # Measurements that fork come first, because a process that has used a GPU cannot fork.
    of_processes, joined = processes(sizes, options.rounds)
    of_shards, opened = shards(sizes, options.rounds)
    of_workers, read, rate = workers(sizes, options.rounds)
    lines, computed = computing(sizes, options.rounds)
    figures = {**computed, **opened, **read, **joined, **costs.epoch_tables(options.out.parent / "cuda", rate)}
    settings = {"rounds": options.rounds, "model": "ViT-B/32" if device() == "cuda" else "4 layers of 128 on 64 px"}
    settings["threads"] = "torch's own" if device() == "cuda" else "1 per process"
    write(options.out, "cost_curves", [*lines, *of_shards, *of_workers, *of_processes], settings, figures)


if __name__ == "__main__":
    main()
