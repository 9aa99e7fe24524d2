"""Items of many shards laid end to end, in order or shuffled, whole or in spite of damaged shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np

from itr.data.loading import plan
from itr.data.shards.remote import shown
from itr.data.shards.schema import Sample, Shard
from itr.data.shards.tars import read_tar
from itr.errors import UnreadableError, UserError

T = TypeVar("T")


def read_items(
    shards: Sequence[Shard],
    counts: list[int],
    order: list[int],
    start: int,
    stop: int,
    items_of: Callable[[Sample], Sequence[T]],
    bad: Callable[[int, UnreadableError], None] | None = None,
) -> Iterator[T]:
    """Items [start, stop) of shards laid end to end, opening only those that hold some of them.

    With `bad`, item i of a shard, where that can't be read, is item i of the shards that follow it in the order, laid
    end to end. That depends on what lies on disk alone, so every process, worker and resumed run finds the same.

    Args:
        shards: the tars.
        counts: how many items each holds.
        order: the order in which they lie.
        start: first item; beyond the end it goes round.
        stop: last item, excluded.
        items_of: the items of a sample.
        bad: is told the number of a damaged or missing shard and the reason, and may refuse to go on; samples that lack
            something then come with a `fault`. Without it the first of either is refused.

    Raises:
        UnreadableError: a shard can't be read, or holds fewer items than its count, or more.
        UserError: nothing is left to stand in for a shard.
    """
    for span in plan.spans(counts, order, start, stop):
        read = 0
        try:
            for item in _items_of_shard(shards[span.shard], counts[span.shard], span, items_of, strict=bad is None):
                read += 1
                yield item
        except UnreadableError as error:
            if bad is None:
                raise
            bad(span.shard, error)
            if read < span.take:
                at = order.index(span.shard)
                others = order[at + 1 :] + order[:at]
                if not sum(counts[shard] for shard in others):
                    raise UserError(f"{error}. No other shard is left to take its place") from None
                yield from read_items(shards, counts, others, span.skip + read, span.skip + span.take, items_of, bad)


def _items_of_shard(
    shard: Shard, count: int, span: plan.Span, items_of: Callable[[Sample], Sequence[T]], strict: bool
) -> Iterator[T]:
    """The items of one span, which must be there."""
    skip = span.skip if count == shard.images else 0  # one item a sample: those that are left out need no look
    items = (item for sample in read_tar(shard.place, skip, strict) for item in items_of(sample))
    read = 0
    for item in islice(items, span.skip - skip, span.skip - skip + span.take):
        read += 1
        yield item
    if read < span.take:
        raise UnreadableError(
            f"shard {shown(shard.place.location)} holds fewer samples than the {count} that were counted; "
            "prepare or fetch it again"
        )
    if span.skip + span.take == count and next(items, None) is not None:
        raise UnreadableError(
            f"shard {shown(shard.place.location)} holds more samples than the {count} that were counted; "
            "prepare or fetch it again"
        )


def shuffle(items: Iterator[T], buffer: int, rng: np.random.Generator) -> Iterator[T]:
    """Give out the items in random order, drawing from a buffer that is kept full."""
    kept: list[T] = []
    for item in items:
        kept.append(item)
        if len(kept) > buffer:
            yield _take(kept, rng)
    while kept:
        yield _take(kept, rng)


def _take(kept: list[T], rng: np.random.Generator) -> T:
    at = int(rng.integers(len(kept)))
    kept[at], kept[-1] = kept[-1], kept[at]
    return kept.pop()
