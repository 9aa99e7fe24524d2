"""Divide a sequence of shards exactly among processes and workers.

The concatenated shards form one sequence of items (images, or captions if each caption is a training pair). Each
process, and each worker within it, reads one contiguous range, so it opens only the shards in its range, any number of
shards works with any number of processes, and every process yields the same number of batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Span:
    """Part of a shard: skip `skip` items, then read `take`."""

    shard: int
    skip: int
    take: int


def spans(counts: list[int], order: list[int], start: int, stop: int) -> list[Span]:
    """The parts of shards that contain items [start, stop) of the shards concatenated in `order`, wrapping around."""
    ends = np.cumsum([counts[shard] for shard in order], dtype=np.int64)
    if stop <= start:
        return []
    if not len(ends) or not ends[-1]:
        raise ValueError("no items to read")
    found: list[Span] = []
    index = int(np.searchsorted(ends, start % ends[-1], side="right"))  # the first shard that ends after `start`
    position = start % int(ends[-1]) - (int(ends[index - 1]) if index else 0)
    while start < stop:
        shard = order[index]
        take = min(counts[shard] - position, stop - start)
        if take:
            found.append(Span(shard, position, take))
        start, position, index = start + take, 0, (index + 1) % len(order)
    return found


@dataclass(frozen=True)
class ProcessShare:
    """One process's part of an epoch.

    Attributes:
        start: first item in the sequence.
        items: number of items.
        batches: number of batches, the same on every process.
    """

    start: int
    items: int
    batches: int

    def bounds(self, batch: int) -> tuple[int, int]:
        """First and last item (exclusive) of a batch, as positions in the sequence; batch sizes differ by at most 1."""
        first, last = (self.start + b * self.items // self.batches for b in (batch, batch + 1))
        return first, last


def training_share(total: int, batch_items: int, rank: int, world: int) -> ProcessShare:
    """Full batches only; the items left over differ from epoch to epoch."""
    batches = total // (batch_items * world)
    items = batches * batch_items
    return ProcessShare(rank * items, items, batches)


def evaluation_share(total: int, batch_items: int, rank: int, world: int) -> ProcessShare:
    """Every item of the sequence, in the same number of batches on each process.

    A process with fewer items than batches also reads items of the next process; evaluation recognizes such duplicates
    by their ids.
    """
    start, stop = rank * total // world, (rank + 1) * total // world
    largest = -(-total // world)
    batches = -(-largest // batch_items)
    return ProcessShare(start, max(stop - start, batches), batches)


@dataclass(frozen=True)
class WorkerShare:
    """The batches [first, last) of a process that one worker makes."""

    first: int
    last: int


def worker_share(batches: int, worker: int, workers: int, start: int = 0) -> WorkerShare:
    """Divide batches among workers for a loader that takes one from each in turn, starting with worker 0.

    Args:
        batches: number of batches of the process.
        worker: index of this worker.
        workers: number of workers.
        start: number of batches already used before the run was resumed; worker 0 makes the one after them.
    """
    slot = (worker + start) % workers
    each, extra = divmod(batches, workers)
    first = slot * each + min(slot, extra)
    last = first + each + (slot < extra)
    done = len(range(slot, start, workers))
    return WorkerShare(min(first + done, last), last)


def shard_order(num_shards: int, seed: int, epoch: int) -> list[int]:
    """The order of the shards in an epoch, the same on all processes."""
    return [int(i) for i in np.random.default_rng([seed, epoch]).permutation(num_shards)]


def rotation(total: int, seed: int, epoch: int) -> int:
    """The position at which an epoch starts, random so that images change processes, workers and batches."""
    return int(np.random.default_rng([seed, epoch, 1]).integers(max(total, 1)))
