"""How time and memory grow with batch, gallery, caption length, shards, workers and processes, and what epochs cost.

    python benchmarks/cost_curves.py

Every point is measured, every curve fitted to its points, and the epochs at the end are calculated (see costs.py).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `itr` does: threads that spin take cores from others

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
        batch: pairs of a training step.
        loss: pairs of a loss alone.
        gallery: images, of five captions each.
        words: length of captions.
        shards: of a split.
        workers: that decode.
        processes: that train together, on CPUs.
        images: that the workers read.
        words_of_step: length of captions in a training step.
        joined: pairs of each of the processes.
        captions: in a batch of captions of one length.
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
    """Points over one size, what was fitted to them, and the operations a second of a bare product beside them."""

    x: list[int]
    found: list[Point]
    powers: tuple[int, ...] = (0, 1)
    rate: float = 0.0

    @property
    def time(self) -> Fit:
        """Fit of the seconds."""
        return fitted([*map(float, self.x)], [point.seconds for point in self.found], self.powers)

    @property
    def memory(self) -> Fit:
        """Fit of the memory, in MiB."""
        return fitted([*map(float, self.x)], [max(point.mebibytes, 0.01) for point in self.found], self.powers)

    def rows(self, name: str) -> Rows:
        """The points as rows of a table, beside the fitted values."""
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
    """Measure a curve, and a bare matrix product before and after it."""
    before = measured(bare, max(5, rounds)).seconds
    found = [measured(partial(make, size), rounds) for size in x]
    taken = (before + measured(bare, max(5, rounds)).seconds) / 2
    return Curve(x, found, powers, 2 * bare.args[0] ** 3 / taken)


def line(what: str, found: Curve, per: int, operations: float, letter: str) -> Line:
    """The time of what is added with x, beside a bare product of as many operations."""
    power = max(found.powers)
    own, bare = per * found.time.coefficients[power], operations / found.rate
    told = Line(what, "ms", 1e3 * own, "bare product of as many operations", 1e3 * bare, 1e3 * bare)
    told.limit_by = f"{operations:.3g} operations at the {found.rate / 1e9:,.0f} GFLOP/s of a bare product around it"
    told.ratio, told.remark = own / bare, found.time.told("ms", letter, 1e3)
    if power > 1:
        straight = replace(found, powers=(0, 1)).time.residual
        told.remark += f" A straight line would leave {100 * straight:.0f} %."
    return told


def memory_line(what: str, found: Curve, per: int, letter: str) -> Line:
    """The memory of what is added with x."""
    told = Line(what, "MiB", per * found.memory.coefficients[max(found.powers)])
    told.remark = found.memory.told("MiB", letter)
    return told


def computing(sizes: Sizes, rounds: int) -> tuple[list[Line], dict[str, Rows]]:
    """Curves of batch, loss, caption length and gallery."""
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
    straight = replace(ranks, powers=(0, 1))  # the memory of a tile doesn't grow, that of embeddings does
    million = "a million scores (N images by 5N captions)"
    lines = [
        line("Training step: each further pair", step, 1, of_pair, "B"),
        memory_line("Training step: memory of each further pair", step, 1, "B"),
        line("Loss (InfoNCE, width 512): a million scores (B²)", loss, 10**6, 6e6 * width, "B"),
        memory_line("Loss: memory of a million scores, of which one matrix is 3.8 MiB", loss, 10**6, "B"),
        line(f"Text tower, {sizes.captions} captions: each further word", text, 1, of_word, "L"),
        memory_line(f"Text tower, {sizes.captions} captions: memory of each further word", text, 1, "L"),
        line(f"Exact ranks, width {width}: {million}", ranks, 200_000, 2e6 * width, "N"),
        memory_line(f"Exact ranks, width {width}: memory of each further 1,000 images", straight, 1000, "N"),
    ]
    return lines, {
        "Training step by batch": step.rows("pairs"),
        "Loss by batch": loss.rows("pairs"),
        "Text tower by caption length": text.rows("words"),
        "Exact ranks by gallery": ranks.rows("images"),
    }


def shards(sizes: Sizes, rounds: int) -> tuple[list[Line], dict[str, Rows]]:
    """The curve of the number of shards: from `find_split` to the first batch of an epoch."""
    found = []
    for number in sizes.shards:
        with curve_data.shards(number) as root:
            found.append(measured(partial(curve_data.opening, root), rounds))
    curve = Curve(sizes.shards, found)
    time = Line("Beginning an epoch: each further 1,000 shards", "ms", 1e6 * curve.time.coefficients[1])
    time.remark = curve.time.told("ms", "shards", 1e3)
    memory = memory_line("Beginning an epoch: memory of each further 1,000 shards", curve, 1000, "shards")
    return [time, memory], {"Beginning an epoch by shards": curve.rows("shards")}


def workers(sizes: Sizes, rounds: int) -> tuple[list[Line], dict[str, Rows], float]:
    """The curve of the number of workers, and the images a second of a process that decodes itself."""
    with tempfile.TemporaryDirectory() as folder:
        curve_data.photographs(Path(folder), sizes.images)
        rates = {number: alone(partial(curve_data.input_rate, folder, number, rounds)) for number in sizes.workers}
    cores = len(os.sched_getaffinity(0))
    most = max(number for number in rates if number <= max(1, cores))
    told = Line(f"Images a second, {most} workers", "images/s", rates[most], "one worker", rates[1])
    told.ratio, told.limit = rates[most] / rates[1], most * rates[1]
    told.limit_by = f"{most} times one worker; the machine has {cores} cores, and the process that reads wants a part"
    rows = [{"workers": n, "images/s": rate, "of one worker": rate / rates[1]} for n, rate in rates.items()]
    return [told], {"Input by workers (JPEG of 341 by 256 to 224)": rows}, rates[0]


def processes(sizes: Sizes, rounds: int) -> tuple[list[Line], dict[str, Rows]]:
    """The curve of the number of processes that train together on CPUs over gloo."""
    rows, width = [], 128
    for number in sizes.processes:
        apart, joined = points.together(number, sizes.joined, sizes.words_of_step, rounds)
        gathered = (number - 1) * sizes.joined * (2 * width * 4 + 8)
        rows.append(
            {
                "processes": number,
                "step each for itself, s": apart,
                "step of DDP, s": joined,
                "gathered, bytes": gathered,
            }
        )
    joined, apart = rows[1]["step of DDP, s"], rows[1]["step each for itself, s"]
    told = Line("Step of 2 processes (gloo, CPU)", "s", joined, "2 that don't talk", apart, ratio=joined / apart)
    told.remark = (
        f"One process alone: {rows[0]['step of DDP, s']:.3g} s. Processes share the machine's "
        f"{len(os.sched_getaffinity(0))} cores, one thread each: beyond them they wait for each other, which the "
        "column of those that don't talk shows."
    )
    return [told], {f"Step by processes, {sizes.joined} pairs each": rows}


def main() -> None:
    """Measure, print and write."""
    options = arguments(__doc__, rounds=5).parse_args()
    sizes = QUICK if options.quick else LARGE if device() == "cuda" else SMALL
    torch.set_float32_matmul_precision("high")  # as training does
    # Those that fork come first: a process that has used a GPU can't.
    of_processes, joined = processes(sizes, options.rounds)
    of_shards, opened = shards(sizes, options.rounds)
    of_workers, read, rate = workers(sizes, options.rounds)
    lines, computed = computing(sizes, options.rounds)
    figures = {**computed, **opened, **read, **joined, **costs.tables(options.out.parent / "cuda", rate)}
    settings = {"rounds": options.rounds, "model": "ViT-B/32" if device() == "cuda" else "4 layers of 128 on 64 px"}
    settings["threads"] = "torch's own" if device() == "cuda" else "1 a process"
    write(options.out, "cost_curves", [*lines, *of_shards, *of_workers, *of_processes], settings, figures)


if __name__ == "__main__":
    main()
