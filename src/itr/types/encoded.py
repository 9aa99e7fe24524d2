"""Outputs of a model: embeddings, their scores, and the pairs that a loss is computed on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Encoded:
    """Embeddings of one modality, from a backbone and then changed by each method's `embed_image` or `embed_text`.

    Change a part with `replace`, which keeps the others.

    Attributes:
        pooled: one embedding per sample, not normalised [N, D].
        tokens: features of patches or words, of the same width [N, T, D].
        mask: True at a patch or word, False at padding [N, T], bool.
        unimodal: embedding for search within the modality [N, E]; None if `pooled` is used for it too.
        extra: further tensors by name, each [N, ...], such as log-variances or several embeddings per sample. They are
            gathered, cached, split into blocks and written to files with the rest.
    """

    pooled: Tensor
    tokens: Tensor
    mask: Tensor
    unimodal: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def pooled_only(pooled: Tensor) -> Encoded:
        """Embeddings [N, D] of samples whose token-level features are not kept."""
        count, width = pooled.shape
        return Encoded(
            pooled, pooled.new_empty(count, 0, width), torch.empty(count, 0, dtype=torch.bool, device=pooled.device)
        )

    def __len__(self) -> int:
        return len(self.pooled)

    @property
    def within(self) -> Tensor:
        """The embedding for search within the modality: `unimodal` if present, otherwise `pooled` [N, E]."""
        return self.pooled if self.unimodal is None else self.unimodal

    def map(self, change: Callable[[Tensor], Tensor]) -> Encoded:
        """Apply `change` to every tensor."""
        unimodal = None if self.unimodal is None else change(self.unimodal)
        extra = {name: change(value) for name, value in self.extra.items()}
        return Encoded(change(self.pooled), change(self.tokens), change(self.mask), unimodal, extra)

    def replace(self, **parts: Any) -> Encoded:
        """A copy with some attributes replaced."""
        return replace(self, **parts)

    @property
    def unit(self) -> Tensor:
        """`pooled`, normalised [N, D]."""
        return self.normalised(self.pooled)

    @property
    def unit_within(self) -> Tensor:
        """`within`, normalised, in float32 or wider [N, E]."""
        return self.normalised(self.within, wide=True)

    def normalised(self, value: Tensor, wide: bool = False) -> Tensor:
        """One of the embeddings, scaled to length 1; in float32 or wider if `wide` is set."""
        return normalised(value, wide)

    def rows(self, index: Tensor | slice) -> Encoded:
        """Some rows, in the order of `index`."""
        return self.map(lambda tensor: tensor[index])

    def without_tokens(self) -> Encoded:
        """A copy without token-level features [N, 0, D]; unlike a slice, it does not keep their memory."""
        count, _, width = self.tokens.shape
        tokens, mask = self.tokens.new_empty(count, 0, width), self.mask.new_empty(count, 0)
        return Encoded(self.pooled, tokens, mask, self.unimodal, self.extra)

    def shortened(self, length: int) -> Encoded:
        """A copy with only the first `length` token-level features."""
        return Encoded(self.pooled, self.tokens[:, :length], self.mask[:, :length], self.unimodal, self.extra)

    def padded(self, length: int) -> Encoded:
        """A copy with token-level features padded to `length`."""
        extra = length - self.tokens.shape[1]
        tokens, mask = F.pad(self.tokens, (0, 0, 0, extra)), F.pad(self.mask, (0, extra))
        return Encoded(self.pooled, tokens, mask, self.unimodal, self.extra)

    def arrays(self, side: str) -> dict[str, np.ndarray]:
        """The arrays that files store, float32.

        SIDE contains `pooled`, SIDE_unimodal and SIDE_<name> the further embeddings, and SIDE_tokens and SIDE_mask the
        token-level features, if there are any.
        """
        kept = {side: self.pooled, f"{side}_unimodal": self.unimodal}
        kept |= {f"{side}_{name}": value for name, value in self.extra.items()}
        if self.tokens.shape[1]:
            kept[f"{side}_tokens"] = self.tokens
        arrays = {name: value.float().cpu().numpy() for name, value in kept.items() if value is not None}
        return arrays | ({f"{side}_mask": self.mask.cpu().numpy()} if self.tokens.shape[1] else {})

    @staticmethod
    def concatenate(parts: list[Encoded]) -> Encoded:
        """All rows of several parts, padded to the longest."""
        length = max(part.tokens.shape[1] for part in parts)
        parts = [part.padded(length) for part in parts]
        unimodal = [part.unimodal for part in parts if part.unimodal is not None]
        return Encoded(
            torch.cat([part.pooled for part in parts]),
            torch.cat([part.tokens for part in parts]),
            torch.cat([part.mask for part in parts]),
            torch.cat(unimodal) if unimodal else None,
            {name: torch.cat([part.extra[name] for part in parts]) for name in parts[0].extra},
        )


def normalised(value: Tensor, wide: bool) -> Tensor:
    """Scale embeddings [N, D] to length 1; rows of zeros stay zero."""
    narrow = wide and value.dtype != torch.float64
    return F.normalize(value.float() if narrow else value, dim=-1)


Similarity = Callable[[Encoded, Encoded], Tensor]
"""Scores each of I images against each of C captions [I, C]."""


@dataclass
class Scores:
    """Some rows of the similarity matrix of a batch's B pairs, in both directions; losses add up over such blocks.

    Attributes:
        rows: which R of the B pairs these are.
        image_to_text: score of these pairs' images against every caption [R, B], float32 or wider.
        score_texts: computes `text_to_image` when a loss uses it.
        positives: True if a pair of these rows and a pair of the batch have the same image [R, B], bool.
    """

    rows: slice
    image_to_text: Tensor
    score_texts: Callable[[], Tensor]
    positives: Tensor

    @staticmethod
    def whole(similarity: Tensor, positives: Tensor) -> Scores:
        """All rows, from the scores of all images and captions [B, B] and their true matches [B, B], bool."""
        return Scores(slice(0, len(similarity)), similarity, lambda: similarity.T, positives)

    @cached_property
    def text_to_image(self) -> Tensor:
        """Score of these pairs' captions against every image [R, B], float32 or wider."""
        return self.score_texts()

    @property
    def size(self) -> int:
        """B, the number of pairs of the batch."""
        return self.positives.shape[1]

    @property
    def share(self) -> float:
        """R / B, these rows' share of a value that does not consist of rows, such as a regulariser."""
        return len(self.positives) / self.size


@dataclass
class Pairs:
    """The B embedded pairs of a training step on all processes, and the rows for which to compute the loss.

    Row b of each attribute belongs to pair b. All processes have the same embeddings; the gradients of a row are
    summed over processes.

    Attributes:
        image: the images [B]; an image with several captions is repeated.
        text: the captions [B].
        image_id: id of each row's image [B].
        scores: the rows of the similarity matrix whose share of the loss to compute; all rows unless
            `itr.training.large_batch` divides the batch.
        extra: values prepared by methods, by name, each [B, ...].
        progress: number of epochs completed, including the fraction of the current one.
    """

    image: Encoded
    text: Encoded
    image_id: Tensor
    scores: Scores
    extra: dict[str, Tensor]
    progress: float = 0.0

    @property
    def rows(self) -> slice:
        """The R of the B pairs for which to compute the loss."""
        return self.scores.rows

    @property
    def share(self) -> float:
        """R / B, these rows' share of a term that does not consist of rows."""
        return self.scores.share

    def score(self, similarity: Similarity) -> Scores:
        """The same rows of another similarity, in both directions, computed from `image` and `text`.

        A loss term with its own similarity uses these scores, so it works with any division into blocks.
        """
        return score_rows(similarity, self.image, self.text, self.image_id, self.rows)

    def __len__(self) -> int:
        return len(self.image_id)


def score_rows(similarity: Similarity, image: Encoded, text: Encoded, image_id: Tensor, rows: slice) -> Scores:
    """Some rows of the similarity matrix of B pairs, in both directions, in float32 or wider.

    Args:
        similarity: scores each image against each caption.
        image: images of all pairs [B].
        text: captions of all pairs [B].
        image_id: id of each pair's image [B].
        rows: the pairs to score.
    """
    image_to_text, positives = _wide(similarity(image.rows(rows), text)), image_id[rows, None] == image_id[None, :]
    if len(image_to_text) == len(image_id):
        return Scores.whole(image_to_text, positives)
    device = image_id.device.type
    mixed, kind = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def score_texts() -> Tensor:
        with torch.autocast(device, kind, mixed):  # the precision of this call, not that of the loss
            return _wide(similarity(image, text.rows(rows))).T

    return Scores(rows, image_to_text, score_texts, positives)


def _wide(similarity: Tensor) -> Tensor:
    return similarity if similarity.dtype == torch.float64 else similarity.float()
