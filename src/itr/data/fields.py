"""Fields of a training batch beyond pictures and captions, each read for the methods that need it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from itr.backbones.base import Tokenizer
from itr.data.schema import Sample
from itr.errors import UserError
from itr.types import Tokens

DENSE = "dense"


class Field(ABC):
    """One further field of a batch. Runs in the loader's workers, so it must be picklable.

    Attributes:
        name: its key in `Batch.image_extra` or `Batch.text_extra`.
        of: whether it has a row an image or a row a caption.
    """

    name: str
    of: Literal["image", "text"]

    @abstractmethod
    def read(self, samples: Sequence[Sample], captions: Sequence[int]) -> Tensor | Tokens:
        """The rows of a batch.

        Args:
            samples: the sample of each image (`of` image) or of each caption (`of` text).
            captions: which of its sample's captions each row is, where `of` is text; empty otherwise.
        """


class DenseCaptions(Field):
    """The dense caption of each image, tokenized [I, L]."""

    name = DENSE
    of = "image"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def read(self, samples: Sequence[Sample], captions: Sequence[int]) -> Tokens:
        """Tokenize the first dense caption of each sample."""
        return self.tokenizer([dense_captions(sample)[0] for sample in samples])


def dense_captions(sample: Sample) -> list[str]:
    """The dense captions of a sample.

    Raises:
        UserError: if it has none; it names the sample and the way out.
    """
    found = sample.meta.get("dense")
    texts = [found] if isinstance(found, str) else found or []
    if not texts:
        raise UserError(
            f"{sample.where} has no dense caption; prepare shards from a table with a column `dense`, or take scenes"
        )
    return texts
