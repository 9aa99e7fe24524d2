"""How a split is read: what the data module decides and the loader's workers follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from itr.data.loading.dense_texts import DenseTexts
from itr.data.shards.schema import Split

Captions = int | Literal["all"]
Texts = Literal["captions", "dense"]


@dataclass
class Reading:
    """How items are read.

    Attributes:
        split: the shards.
        captions: how many captions an image brings to a place in a batch; `all` makes each caption a place of its own
            in training.
        batch_items: places in a batch.
        seed: of order, captions and augmentation.
        shuffle_buffer: samples (as bytes) among which a worker shuffles; ignored in evaluation.
        max_pixels: an image with more is not decoded.
        texts: which texts of a sample are its captions.
        dense: dense captions beside the shards.
        max_skipped: training samples without an image or caption that can be used, in one epoch of a process.
        max_bad_shards: training shards that may be missing or damaged, in one epoch of a process.
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
