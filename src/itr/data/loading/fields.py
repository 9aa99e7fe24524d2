"""Batch fields beyond images and captions, read for the methods that need them."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from itr.backbones.base import Tokenizer
from itr.data.loading.dense_texts import DenseTexts
from itr.data.shards.schema import Sample, Split
from itr.data.shards.tars import read_tar
from itr.errors import UnreadableError, UserError
from itr.images.transforms import read_view
from itr.types import Extra, HostTokens, Tokens

DENSE = "dense"
CAPTIONS = "captions"


class Field(ABC):
    """An extra field of a batch. It is read in the loader's workers, so it must be picklable.

    Attributes:
        name: its key in `Batch.image_extra` or `Batch.text_extra`.
        of: whether it has one row per image or one row per caption.
        reads_images: whether it uses the images of the samples.
    """

    name: str
    of: Literal["image", "text"]
    reads_images: bool = False

    @abstractmethod
    def read(self, samples: Sequence[Sample], captions: Sequence[int]) -> Extra:
        """Read the rows of a batch.

        Args:
            samples: the sample of each row, that is of each image or of each caption, depending on `of`.
            captions: for `of` text, the index of each row's caption within its sample; empty for `of` image.
        """


class KeptOutputs(Protocol):
    """What a frozen tower returned for the images or captions of a split; see `itr.data.towers`."""

    def images(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The outputs of images, by image_id, and what equal images share."""

    def missing(self, image_id: int) -> bool:
        """Whether the image could not be decoded."""

    def contents(self, ids: Sequence[int]) -> list[int]:
        """A hash of each image's file, by image_id."""

    def texts(self, ids: Sequence[int]) -> tuple[Tensor, Tokens]:
        """The outputs of captions, by caption_id, and their mask."""


class DenseCaptions(Field):
    """The dense caption of each image, tokenized [I, L]."""

    name = DENSE
    of = "image"

    def __init__(self, tokenizer: Tokenizer, stored: DenseTexts | None = None) -> None:
        self.tokenizer, self.stored = tokenizer, stored

    def read(self, samples: Sequence[Sample], captions: Sequence[int]) -> Tokens:
        """Tokenize the first dense caption of each sample."""
        return self.tokenizer([dense_captions(sample, self.stored)[0] for sample in samples])


class CaptionTexts(Field):
    """The captions as strings, for a teacher with its own tokenizer [C]."""

    name = CAPTIONS
    of = "text"

    def read(self, samples: Sequence[Sample], captions: Sequence[int]) -> list[str]:
        """The caption of each row."""
        return [sample.captions[caption] for sample, caption in zip(samples, captions, strict=True)]


class CaptionTokens(Field):
    """The captions, tokenized for another encoder; they stay on the host [C, L].

    Args:
        name: its key in the batch.
        tokenizer: tokenizer of that encoder.
    """

    of = "text"

    def __init__(self, name: str, tokenizer: Callable[[Sequence[str]], Tokens]) -> None:
        self.name, self.tokenizer = name, tokenizer

    def read(self, samples: Sequence[Sample], captions: Sequence[int]) -> HostTokens:
        """Tokenize the caption of each row."""
        texts = [sample.captions[caption] for sample, caption in zip(samples, captions, strict=True)]
        return HostTokens(self.tokenizer(texts))


class ImageView(Field):
    """The images, preprocessed for another encoder [I, 3, H, H], uint8.

    NOTE: each image is decoded a second time, because this view is not augmented.

    Args:
        name: its key in the batch.
        transform: turns a decoded image into [3, size, size], uint8.
    """

    of = "image"
    reads_images = True

    def __init__(self, name: str, transform: Callable[[Any], Tensor]) -> None:
        self.name, self.transform = name, transform

    def read(self, samples: Sequence[Sample], captions: Sequence[int]) -> Tensor:
        """Decode and transform the images; the loader has already excluded undecodable and oversized ones."""
        return torch.stack([read_view(sample.image, sys.maxsize, self.transform) for sample in samples])


def dense_captions(sample: Sample, stored: DenseTexts | None = None) -> list[str]:
    """The dense captions of a sample: those in the shard, or those stored next to the shards.

    Raises:
        UserError: the sample has no dense caption.
    """
    found = sample.meta.get("dense")
    texts = [text for text in (found if isinstance(found, list) else [found]) if isinstance(text, str) and text]
    if not texts and stored is not None:
        text = stored.text(sample.image_id)
        texts = [] if text is None else [text]
    if not texts:
        raise UserError(
            f"{sample.where} has no dense caption; generate dense captions with `itr densify`, or prepare shards from "
            "a table with a column `dense`"
        )
    return texts


def check_first_dense(split: Split) -> None:
    """Check that the first sample of a split without stored dense captions has one, before a run begins.

    Raises:
        UserError: it has none.
    """
    shard = next((shard for shard in split.shards if shard.images), None)
    if shard is None:
        return
    with suppress(UnreadableError):  # the run may skip a damaged shard
        for sample in islice(read_tar(shard.place, strict=False), 1):
            if not sample.fault:
                dense_captions(sample)
