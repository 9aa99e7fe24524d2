"""Scores that a model computes for pairs of embeddings, in blocks that fit into memory."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from itr.evaluation.score import Score
from itr.types import Encoded

# Numbers in a block if the model compares every token with every other.
IN_MEMORY = {"cpu": 2**22, "cuda": 2**26}
PAIRS = 16  # pairs that are scored as one block, of which the diagonal is kept


class PairModel(Protocol):
    """A model that scores pairs: an `itr.module.RetrievalModule`."""

    def similarity(self, image: Encoded, text: Encoded) -> Tensor:
        """Score every image against every caption [I, C]."""
        ...


class ModelScore(Score):
    """The similarity of a model between images [N] and captions [M], float32.

    Unlike with `Cosine`, the scores of equal embeddings may differ in their last digits from block to block.

    Args:
        model: the model, on the device of the embeddings.
        image: the images.
        text: the captions.
    """

    def __init__(self, model: PairModel, image: Encoded, text: Encoded) -> None:
        self.model, self.image, self.text = model, image, text
        self.num_images, self.num_texts = len(image), len(text)
        tokens = max(1, image.tokens.shape[1]) * max(1, text.tokens.shape[1])
        room = IN_MEMORY.get(image.pooled.device.type, IN_MEMORY["cpu"])
        self.block = max(1, int((room / tokens) ** 0.5))

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        """Score some images against some captions [I, C]."""
        return torch.cat(
            [
                torch.cat([self._block(some, others) for others in _blocks(columns, self.num_texts, self.block)], dim=1)
                for some in _blocks(rows, self.num_images, self.block)
            ]
        )

    def pairs(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Score images `rows` [P] with captions `columns` [P], pair by pair [P]."""
        parts = zip(rows.split(PAIRS), columns.split(PAIRS), strict=True)
        return torch.cat([self._block(some, others).diagonal() for some, others in parts])

    def _block(self, rows: slice | Tensor, columns: slice | Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(self.image.pooled.device.type, enabled=False):
            return self.model.similarity(self.image.rows(rows), self.text.rows(columns)).float()


def on_model(encoded: Encoded, model: nn.Module, device: torch.device) -> Encoded:
    """Move embeddings to a device and convert them to the dtype of the model's parameters."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return encoded.map(lambda value: value.to(device, dtype if value.is_floating_point() else None))


def _blocks(wanted: slice, length: int, size: int) -> list[slice]:
    start, stop, _ = wanted.indices(length)
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]
