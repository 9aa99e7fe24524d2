"""Who reads what: exact shares of a sequence of shards, equal on every process by construction.

All shards laid end to end make one sequence of items (images, or captions when each is a training pair). A process, and
within it a worker, takes one stretch of it, so it opens only the shards that its stretch touches, any number of shards
serves any number of processes, and every process yields the same number of batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Span:
    """Part of a shard: leave out `skip` items, then read `take`."""

    shard: int
    skip: int
    take: int


def spans(counts: list[int], order: list[int], start: int, stop: int) -> list[Span]:
    """The parts of shards that items [start, stop) cover when shards of `counts` items lie in `order`, going round."""
    ends = np.cumsum([counts[shard] for shard in order], dtype=np.int64)
    if stop <= start:
        return []
    if not len(ends) or not ends[-1]:
        raise ValueError("no items to read")
    found: list[Span] = []
    place = int(np.searchsorted(ends, start % ends[-1], side="right"))  # the first shard that ends after it
    position = start % int(ends[-1]) - (int(ends[place - 1]) if place else 0)
    while start < stop:
        shard = order[place]
        take = min(counts[shard] - position, stop - start)
        if take:
            found.append(Span(shard, position, take))
        start, position, place = start + take, 0, (place + 1) % len(order)
    return found


@dataclass(frozen=True)
class Share:
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
        """First and last item (excluded) of a batch, as positions in the sequence; sizes differ by one at most."""
        first, last = (self.start + b * self.items // self.batches for b in (batch, batch + 1))
        return first, last


def training_share(total: int, batch_items: int, rank: int, world: int) -> Share:
    """Full batches only; what is left over differs from epoch to epoch."""
    batches = total // (batch_items * world)
    items = batches * batch_items
    return Share(rank * items, items, batches)


def evaluation_share(total: int, batch_items: int, rank: int, world: int) -> Share:
    """Every item of the sequence, in as many batches on each process.

    A process that has fewer items than batches reads on into the next one's; evaluation knows those by their ids.
    """
    start, stop = rank * total // world, (rank + 1) * total // world
    largest = -(-total // world)
    batches = -(-largest // batch_items)
    return Share(start, max(stop - start, batches), batches)


@dataclass(frozen=True)
class WorkerShare:
    """The batches [first, last) of a process's share that one worker makes."""

    first: int
    last: int


def worker_share(batches: int, worker: int, workers: int, start: int = 0) -> WorkerShare:
    """Split batches among workers as a loader collects them: one of each in turn, beginning with worker 0.

    Args:
        batches: number of batches of the process.
        worker: number of this worker.
        workers: how many there are.
        start: batches that were used before a run was resumed; the turn that comes next then falls to worker 0.
    """
    slot = (worker + start) % workers
    each, extra = divmod(batches, workers)
    first = slot * each + min(slot, extra)
    last = first + each + (slot < extra)
    done = len(range(slot, start, workers))
    return WorkerShare(min(first + done, last), last)


def shard_order(num_shards: int, seed: int, epoch: int) -> list[int]:
    """The order of the shards in an epoch: all processes agree on it."""
    return [int(i) for i in np.random.default_rng([seed, epoch]).permutation(num_shards)]


def rotation(total: int, seed: int, epoch: int) -> int:
    """Where in the sequence an epoch begins, so that no image is tied to one process, worker or batch neighbour."""
    return int(np.random.default_rng([seed, epoch, 1]).integers(max(total, 1)))
