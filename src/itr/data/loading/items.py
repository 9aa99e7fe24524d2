"""Read items from a sequence of shards, in order or shuffled, replacing those of damaged shards if allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np

from itr.data.loading import plan
from itr.data.shards.remote import redacted
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
    images: bool = True,
) -> Iterator[T]:
    """Read items [start, stop) of the concatenated shards, opening only the shards that contain them.

    With `bad`, item i of an unreadable shard is replaced by item i of the concatenation of the shards after it in the
    order. This depends only on the files on disk, so every process, worker and resumed run reads the same items.

    Args:
        shards: the tars.
        counts: number of items in each shard.
        order: order in which the shards are concatenated.
        start: first item; positions past the end wrap around.
        stop: last item, exclusive.
        items_of: returns the items of a sample.
        bad: called with the index of a damaged or missing shard and the error; it may raise to stop. Incomplete samples
            then have a `fault`. Without it, the first damaged shard or incomplete sample raises an error.
        images: whether to read the images.

    Raises:
        UnreadableError: a shard could not be read, or contains fewer or more items than its count.
        UserError: no other shard is left to replace a damaged one.
    """
    for span in plan.spans(counts, order, start, stop):
        read = 0
        try:
            for item in _items_of_shard(shards[span.shard], counts[span.shard], span, items_of, bad is None, images):
                read += 1
                yield item
        except UnreadableError as error:
            if bad is None:
                raise
            bad(span.shard, error)
            if read < span.take:
                others = _replacements(span.shard, counts, order, error)
                yield from read_items(
                    shards, counts, others, span.skip + read, span.skip + span.take, items_of, bad, images
                )


def _replacements(bad_shard: int, counts: list[int], order: list[int], error: UnreadableError) -> list[int]:
    """The other shards, in order, starting after the bad one."""
    at = order.index(bad_shard)
    others = order[at + 1 :] + order[:at]
    if not sum(counts[shard] for shard in others):
        raise UserError(f"{error}. No other shard is left to replace it") from None
    return others


def _items_of_shard(
    shard: Shard, count: int, span: plan.Span, items_of: Callable[[Sample], Sequence[T]], strict: bool, images: bool
) -> Iterator[T]:
    """The items of one span, which must be complete."""
    skip = span.skip if count == shard.images else 0  # with one item per sample, skipped samples need not be parsed
    items = (item for sample in read_tar(shard.place, skip, strict, images) for item in items_of(sample))
    read = 0
    for item in islice(items, span.skip - skip, span.skip - skip + span.take):
        read += 1
        yield item
    if read < span.take:
        raise UnreadableError(
            f"shard {redacted(shard.place.location)} contains fewer samples than the {count} that were counted; "
            "prepare or download it again"
        )
    if span.skip + span.take == count and next(items, None) is not None:
        raise UnreadableError(
            f"shard {redacted(shard.place.location)} contains more samples than the {count} that were counted; "
            "prepare or download it again"
        )


def shuffle(items: Iterator[T], buffer: int, rng: np.random.Generator) -> Iterator[T]:
    """Yield the items in random order, drawing from a buffer that is kept full."""
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
