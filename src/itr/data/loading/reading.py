"""Options of reading a split, set by the data module and followed by the loader's workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from itr.data.loading.dense_texts import DenseTexts
from itr.data.shards.remote import redacted
from itr.data.shards.schema import Split
from itr.errors import UserError

Captions = int | Literal["all"]
Texts = Literal["captions", "dense"]


@dataclass
class ReadOptions:
    """How items are read.

    Attributes:
        split: the shards.
        captions: number of captions to use per image; with `all`, each caption is an item of its own in training.
        batch_items: number of items in a batch.
        seed: seed of order, captions and augmentation.
        shuffle_buffer: number of encoded samples among which a worker shuffles; ignored in evaluation.
        max_pixels: images with more pixels are not decoded.
        texts: which texts of a sample are used as captions.
        dense: dense captions stored next to the shards.
        max_skipped: limit on training samples without a usable image or caption, per epoch and process.
        max_bad_shards: limit on missing or damaged training shards, per epoch and process.
    """

    split: Split
    captions: Captions
    batch_items: int
    seed: int
    shuffle_buffer: int
    max_pixels: int
    max_skipped: int
    max_bad_shards: int = 0
    texts: Texts = "captions"
    dense: DenseTexts | None = None


def check_disjoint(training: Split, validation: Split, name: str) -> None:
    """Check that no shard is in both splits, by location and by checksum where known.

    Raises:
        UserError: a shard is in both.
    """
    known = {mark for shard in training.shards for mark in (shard.place.location, shard.sha256) if mark}
    for shard in validation.shards:
        if shard.place.location in known or shard.sha256 in known:
            raise UserError(
                f"shard {redacted(shard.place.location)} of data.val_split = {name!r} is also used for training, so "
                "the best checkpoint could be one that overfits; give --data.val_split its own shards, or null"
            )
