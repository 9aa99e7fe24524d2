"""Loading rate by number of workers, and the memory of workers over epochs."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from itr.data.loading.pipeline import ShardLoader
from measuring import Line, Rounds, seconds, side_by_side
from pipeline_parts import BATCH, SIZE, bare_loop, bare_training, consume, encoded, loader

_images: list[bytes] = []


def _begin(shards: str) -> None:
    torch.set_num_threads(1)
    _images.extend(encoded(Path(shards)))


def _pass(number: int) -> None:
    bare_loop(_images, bare_training())


def scaling(shards: Path, counts: Sequence[int], rounds: int) -> tuple[list[Line], list[dict[str, float]]]:
    """Return images per second by number of workers, and of as many processes that only run the bare loop."""
    images, most = len(encoded(shards)), counts[-1]
    loaders = {n: loader(shards, "--data.captions=all", workers=n) for n in counts}  # one image per caption
    context = multiprocessing.get_context("spawn")
    pools = {n: context.Pool(n, _begin, (str(shards),)) for n in counts}
    alternatives = {f"loader {n}": lambda n=n: consume(loaders[n]) for n in counts}
    alternatives |= {f"bare {n}": lambda n=n: pools[n].map(_pass, range(n), chunksize=1) for n in counts}
    found = side_by_side(alternatives, rounds)
    for pool in pools.values():
        pool.terminate()
    batches = {n: len(each) * BATCH for n, each in loaders.items()}
    rates = {n: (batches[n] / found.median(f"loader {n}"), n * images / found.median(f"bare {n}")) for n in counts}
    points = [
        {"workers": n, "images/s": ours, "images/s per worker": ours / n, "bare loop, images/s per process": bare / n}
        for n, (ours, bare) in rates.items()
    ]
    line = _linear(rates, most, found, counts)
    if line.met is False:
        line.profile = receiving(loaders[most])
    return [_each(rates, counts[0], found, batches, images), line], points


def receiving(batches: ShardLoader) -> dict[str, float]:
    """Return the share of all cores' time that this process needs to receive batches, and the remaining share."""
    own = time.process_time()
    wall = seconds(lambda: consume(batches))
    share = (time.process_time() - own) / (wall * len(os.sched_getaffinity(0)))
    return {"the process that receives the batches": share, "workers and system": 1 - share}


def _each(rates: dict[int, tuple[float, float]], n: int, found: Rounds, batches: dict[int, int], images: int) -> Line:
    ratio = batches[n] / (n * images) * found.ratio(f"bare {n}", f"loader {n}")
    copying = shared_memory() * rates[n][0]
    return Line(
        f"{n} worker, to byte batches in the main process, 256-pixel shards",
        "images/s",
        rates[n][0],
        "the bare loop in one process, without handing batches over",
        rates[n][1],
        ratio=ratio,
        at_least=0.85,
        remark="A worker writes each batch to new shared memory for the main process, one page fault at a time. "
        "Writing it there directly instead of copying it was tried and saved only a small part of that.",
        profile={"new shared memory": copying, "the bare loop's work": ratio, "other": 1 - copying - ratio},
    )


def shared_memory() -> float:
    """Return the additional seconds per image if its batch is put in shared memory."""
    images = [torch.zeros(3, SIZE, SIZE, dtype=torch.uint8) for _ in range(BATCH)]
    alternatives = {"own": lambda: torch.stack(images), "shared": lambda: torch.stack(images).share_memory_()}
    found = side_by_side(alternatives, rounds=5)
    return (found.median("shared") - found.median("own")) / BATCH


def _linear(rates: dict[int, tuple[float, float]], most: int, found: Rounds, counts: Sequence[int]) -> Line:
    first, cores = counts[0], len(os.sched_getaffinity(0))
    grown = found.ratio(f"loader {first}", f"loader {most}")
    bare = most / first * found.ratio(f"bare {first}", f"bare {most}")
    return Line(
        f"speed-up from {first} to {most} workers, 256-pixel shards",
        "times",
        grown,
        "the bare loop in the same number of processes",
        bare,
        float(most / first),
        "linear scaling with the number of cores",
        grown / bare,
        at_least=0.9,
        remark=f"The workers and the process that receives their batches share {cores} cores.",
    )


def memory_growth(shards: Path, epochs: int) -> tuple[Line, list[dict[str, float]]]:
    """Return the memory growth of two workers over many epochs."""
    if not Path("/proc/self/smaps_rollup").exists():
        return Line("memory of a worker over epochs", "MB", unmeasured="needs /proc"), []
    batches = loader(shards, "--data.captions=all", workers=2)
    points = []
    for epoch in range(epochs):
        batches.position = lambda epoch=epoch: (epoch, 0)  # type: ignore[misc]
        consume(batches)
        time.sleep(0.2)  # wait until the received batches have been freed
        workers = [process.pid for process in batches._iterator._workers]  # type: ignore[union-attr]
        points.append({"epoch": epoch + 1.0, "MB per worker": sum(map(own_memory, workers)) / len(workers)})
    half = points[epochs // 2 :]
    grown = (half[-1]["MB per worker"] - half[0]["MB per worker"]) / max(len(half) - 1, 1)
    text = f"growth of a worker's memory per epoch, over the last {len(half)} of {epochs} epochs"
    remark = "PSS without pages shared with the process that receives the batches, read from /proc after each epoch."
    return Line(text, "MB", grown, at_most=1.0, remark=remark), points


def own_memory(process: int) -> float:
    """Return the private pages of a process in megabytes."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1e3
