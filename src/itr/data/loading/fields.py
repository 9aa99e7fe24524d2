"""Fields of a training batch beyond images and captions, each read for the methods that need it."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from itr.backbones.base import Tokenizer
from itr.data.loading.dense_texts import DenseTexts
from itr.data.shards.schema import Sample
from itr.errors import UserError
from itr.images.transforms import decode
from itr.types import Extra, HostTokens, Tokens

DENSE = "dense"
CAPTIONS = "captions"


class Field(ABC):
    """One further field of a batch. Runs in the loader's workers, so it must be picklable.

    Attributes:
        name: its key in `Batch.image_extra` or `Batch.text_extra`.
        of: whether it has a row an image or a row a caption.
    """

    name: str
    of: Literal["image", "text"]

    @abstractmethod
    def read(self, samples: Sequence[Sample], captions: Sequence[int]) -> Extra:
        """The rows of a batch.

        Args:
            samples: the sample of each image (`of` image) or of each caption (`of` text).
            captions: which of its sample's captions each row is, where `of` is text; empty otherwise.
        """


class DenseCaptions(Field):
    """The dense caption of each image, tokenized [I, L]."""

    name = DENSE
    of = "image"

    def __init__(self, tokenizer: Tokenizer, kept: DenseTexts | None = None) -> None:
        self.tokenizer, self.kept = tokenizer, kept

    def read(self, samples: Sequence[Sample], captions: Sequence[int]) -> Tokens:
        """Tokenize the first dense caption of each sample."""
        return self.tokenizer([dense_captions(sample, self.kept)[0] for sample in samples])


class CaptionTexts(Field):
    """The captions as they were written, for a teacher with a tokenizer of its own [C]."""

    name = CAPTIONS
    of = "text"

    def read(self, samples: Sequence[Sample], captions: Sequence[int]) -> list[str]:
        """Take the text of each row."""
        return [sample.captions[caption] for sample, caption in zip(samples, captions, strict=True)]


class CaptionTokens(Field):
    """The captions as another encoder's tokenizer reads them, on the host [C, L].

    Args:
        name: its key in the batch.
        tokenizer: of that encoder.
    """

    of = "text"

    def __init__(self, name: str, tokenizer: Callable[[Sequence[str]], Tokens]) -> None:
        self.name, self.tokenizer = name, tokenizer

    def read(self, samples: Sequence[Sample], captions: Sequence[int]) -> HostTokens:
        """Tokenize the caption of each row."""
        texts = [sample.captions[caption] for sample, caption in zip(samples, captions, strict=True)]
        return HostTokens(self.tokenizer(texts))


class ImageView(Field):
    """The images once more, as another encoder wants them [I, 3, H, H], uint8.

    NOTE: each image is decoded a second time, since the view has nothing of the training augmentation.

    Args:
        name: its key in the batch.
        transform: decoded image [3, H, W] to [3, size, size], uint8.
    """

    of = "image"

    def __init__(self, name: str, transform: Callable[[Tensor], Tensor]) -> None:
        self.name, self.transform = name, transform

    def read(self, samples: Sequence[Sample], captions: Sequence[int]) -> Tensor:
        """Decode and transform; the loader has left out what can't be decoded or is too large."""
        return torch.stack([self.transform(decode(sample.image, sys.maxsize)) for sample in samples])


def dense_captions(sample: Sample, kept: DenseTexts | None = None) -> list[str]:
    """The dense captions of a sample: its own, or what is kept beside the shards.

    Raises:
        UserError: if it has none; it names the sample and the way out.
    """
    found = sample.meta.get("dense")
    texts = [text for text in (found if isinstance(found, list) else [found]) if isinstance(text, str) and text]
    if not texts and kept is not None:
        made = kept.text(sample.image_id)
        texts = [] if made is None else [made]
    if not texts:
        raise UserError(
            f"{sample.where} has no dense caption; make them by `itr densify`, or prepare shards from a table with a "
            "column `dense`"
        )
    return texts
