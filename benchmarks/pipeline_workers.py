"""How loading grows with workers, and what memory they take over epochs."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from itr.data.loading.pipeline import ShardLoader
from measuring import Line, Rounds, seconds, side_by_side
from pipeline_parts import BATCH, SIZE, bare_loop, bare_training, encoded, loader, through

_images: list[bytes] = []


def _begin(shards: str) -> None:
    torch.set_num_threads(1)
    _images.extend(encoded(Path(shards)))


def _pass(number: int) -> None:
    bare_loop(_images, bare_training())


def scaling(shards: Path, counts: Sequence[int], rounds: int) -> tuple[list[Line], list[dict[str, float]]]:
    """Images a second by workers, beside as many processes that run the bare loop and hand nothing over."""
    images, most = len(encoded(shards)), counts[-1]
    loaders = {n: loader(shards, "--data.captions=all", workers=n) for n in counts}  # each caption with its image
    context = multiprocessing.get_context("spawn")
    pools = {n: context.Pool(n, _begin, (str(shards),)) for n in counts}
    ways = {f"loader {n}": lambda n=n: through(loaders[n]) for n in counts}
    ways |= {f"bare {n}": lambda n=n: pools[n].map(_pass, range(n), chunksize=1) for n in counts}
    found = side_by_side(ways, rounds)
    for pool in pools.values():
        pool.terminate()
    batches = {n: len(each) * BATCH for n, each in loaders.items()}
    rates = {n: (batches[n] / found.median(f"loader {n}"), n * images / found.median(f"bare {n}")) for n in counts}
    points = [
        {"workers": n, "images/s": ours, "images/s a worker": ours / n, "bare loop, images/s a process": bare / n}
        for n, (ours, bare) in rates.items()
    ]
    line = _linear(rates, most, found, counts)
    if line.met is False:
        line.profile = taking(loaders[most])
    return [_each(rates, counts[0], found, batches, images), line], points


def taking(batches: ShardLoader) -> dict[str, float]:
    """Of the time of all cores, the share that this process needs to take the workers' batches, and what is left."""
    own = time.process_time()
    wall = seconds(lambda: through(batches))
    share = (time.process_time() - own) / (wall * len(os.sched_getaffinity(0)))
    return {"the process that takes the batches": share, "left for workers and system": 1 - share}


def _each(rates: dict[int, tuple[float, float]], n: int, found: Rounds, batches: dict[int, int], images: int) -> Line:
    ratio = batches[n] / (n * images) * found.ratio(f"bare {n}", f"loader {n}")
    handing = shared_memory() * rates[n][0]
    return Line(
        f"{n} worker, to batches of bytes in the main process, 256-pixel shards",
        "images/s",
        rates[n][0],
        "the bare loop in one process, which hands nothing over",
        rates[n][1],
        ratio=ratio,
        at_least=0.85,
        remark="A worker writes each batch into fresh shared memory for the main process, page fault by page fault. "
        "Writing it there at once instead of copying it was tried and saved a small part of that.",
        profile={"fresh shared memory": handing, "the bare loop's work": ratio, "the rest": 1 - handing - ratio},
    )


def shared_memory() -> float:
    """Seconds that an image takes more where its batch is put into shared memory."""
    images = [torch.zeros(3, SIZE, SIZE, dtype=torch.uint8) for _ in range(BATCH)]
    ways = {"own": lambda: torch.stack(images), "shared": lambda: torch.stack(images).share_memory_()}
    found = side_by_side(ways, rounds=5)
    return (found.median("shared") - found.median("own")) / BATCH


def _linear(rates: dict[int, tuple[float, float]], most: int, found: Rounds, counts: Sequence[int]) -> Line:
    first, cores = counts[0], len(os.sched_getaffinity(0))
    grown = found.ratio(f"loader {first}", f"loader {most}")
    bare = most / first * found.ratio(f"bare {first}", f"bare {most}")
    return Line(
        f"rate with {most} workers over that with {first}, 256-pixel shards",
        "times",
        grown,
        "the bare loop in as many processes",
        bare,
        float(most / first),
        "as many cores do as many times the work",
        grown / bare,
        at_least=0.9,
        remark=f"{cores} cores for the workers and for the process that takes their batches.",
    )


def growth(shards: Path, epochs: int) -> tuple[Line, list[dict[str, float]]]:
    """The memory of two workers that live through many epochs."""
    if not Path("/proc/self/smaps_rollup").exists():
        return Line("memory of a worker over epochs", "MB", unmeasured="it needs /proc"), []
    batches = loader(shards, "--data.captions=all", workers=2)
    points = []
    for epoch in range(epochs):
        batches.position = lambda epoch=epoch: (epoch, 0)  # type: ignore[misc]
        through(batches)
        time.sleep(0.2)  # batches that were handed over are let go
        workers = [process.pid for process in batches._iterator._workers]  # type: ignore[union-attr]
        points.append({"epoch": epoch + 1.0, "MB a worker": sum(map(own_memory, workers)) / len(workers)})
    half = points[epochs // 2 :]
    grown = (half[-1]["MB a worker"] - half[0]["MB a worker"]) / max(len(half) - 1, 1)
    text = f"growth of a worker's memory an epoch, over the last {len(half)} of {epochs} epochs"
    remark = "PSS without pages shared with the process that takes the batches, read from /proc after each epoch."
    return Line(text, "MB", grown, at_most=1.0, remark=remark), points


def own_memory(process: int) -> float:
    """Megabytes of private pages of a process."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1e3
