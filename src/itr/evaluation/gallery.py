"""The embeddings of a split, each sample once, sorted by id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from itr.data.shards.positives import find_rows
from itr.distributed import gather_uneven, largest
from itr.evaluation.score import Score
from itr.evaluation.scoring import CosineScorer, Scorer
from itr.types import Batch, Encoded, Tokens

NORMALIZED = "normalized"
NOT_NORMALIZED = (
    "these embeddings are not normalized: divide each by its length before you compare them by dot products"
)
UNIT_TOLERANCE = 1e-4
MIXING = (-7046029254386353131, -4658895280553007687, -7723592293110705685)  # the factors of splitmix64


@dataclass
class Gallery:
    """Embedded images and captions.

    Attributes:
        image: the images [N].
        image_id: their ids, ascending [N].
        text: the captions [M].
        text_id: their ids, ascending [M].
        text_image_id: the id of each caption's image [M].
        scorer: scores its pairs.
    """

    image: Encoded
    image_id: Tensor
    text: Encoded
    text_id: Tensor
    text_image_id: Tensor
    scorer: Scorer = field(default_factory=CosineScorer)

    def own_image(self) -> Tensor:
        """The row in `image` of each caption's image [M].

        Raises:
            ValueError: the image of a caption is not in the gallery.
        """
        rows, known = find_rows(self.text_image_id, self.image_id)
        if not known.all():
            raise ValueError(f"{int((~known).sum())} captions belong to images that are not in the gallery")
        return rows

    def score(self, device: torch.device | str = "cpu") -> Score:
        """The scores of all pairs, computed on `device`; every metric is based on them."""
        return self.scorer.score(self.image, self.text, torch.device(device))

    def rows(self, images: Tensor | slice, captions: Tensor | slice) -> Gallery:
        """The gallery of some images and some captions."""
        return Gallery(
            self.image.rows(images),
            self.image_id[images],
            self.text.rows(captions),
            self.text_id[captions],
            self.text_image_id[captions],
            self.scorer,
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of an embedding file: `image` [N, D], `text` [M, D], `image_id`, `caption_id`, `caption_image_id`.

        `scored_by` is the scorer's name, `normalized` whether `image` and `text` have unit length; see `Encoded.arrays`
        for further embeddings.
        """
        rows = {**self.image.arrays("image"), **self.text.arrays("text")}
        ids = {"image_id": self.image_id, "caption_id": self.text_id, "caption_image_id": self.text_image_id}
        return {
            **rows,
            **{name: value.numpy() for name, value in ids.items()},
            "scored_by": np.array(self.scorer.name),
            NORMALIZED: np.array(has_unit_length(rows)),
        }


def has_unit_length(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether all embeddings `image` [N, D] and `text` [M, D], of those that are there, have unit length."""
    rows = [arrays[name] for name in ("image", "text") if name in arrays]
    return all(bool((np.abs(np.linalg.norm(part, axis=1) - 1) < UNIT_TOLERANCE).all()) for part in rows)


@dataclass
class GalleryBuilder:
    """Collects the embeddings of all batches of an evaluation, and merges those of all processes.

    Equal images share one embedding, and so do equal captions. The last digits of a tower's output depend on the batch,
    so without this a tie could become a hit or a miss when the batch size or the number of processes changes.

    Attributes:
        with_tokens: keep token-level features too, for a backbone that scores pairs with them.
    """

    with_tokens: bool = False
    images: list[Encoded] = field(default_factory=list)
    texts: list[Encoded] = field(default_factory=list)
    ids: list[tuple[Tensor, ...]] = field(default_factory=list)

    def add(self, batch: Batch, image: Encoded, text: Encoded) -> None:
        """Keep the embeddings of one batch."""
        self.images.append(self._keep(image))
        self.texts.append(self._keep(text))
        marks = _marks_of_images(batch.image), _marks_of_texts(batch.text)
        self.ids.append((batch.image_id, batch.text_id, batch.text_image_id, *marks))

    def build(self, scorer: Scorer | None = None) -> Gallery:
        """The embeddings of all processes, each sample once, sorted by id. Every process must call this."""
        image_id, text_id, text_image_id, image_mark, text_mark = (
            gather_uneven(torch.cat(parts)).cpu() for parts in zip(*self.ids, strict=True)
        )
        images, texts = self._merge(self.images), self._merge(self.texts)
        first_image, first_text = _first_of_each(image_id), _first_of_each(text_id)
        return Gallery(
            images.rows(_first_of_equals(image_mark, first_image)),
            image_id[first_image],
            texts.rows(_first_of_equals(text_mark, first_text)),
            text_id[first_text],
            text_image_id[first_text],
            scorer or CosineScorer(),
        )

    def _keep(self, encoded: Encoded) -> Encoded:
        kept = encoded if self.with_tokens else encoded.without_tokens()
        return kept.map(lambda tensor: tensor.detach())

    @staticmethod
    def _merge(parts: list[Encoded]) -> Encoded:
        joined = Encoded.concatenate(parts)
        joined = joined.padded(largest(joined.tokens.shape[1], joined.pooled.device))
        return joined.map(lambda tensor: gather_uneven(tensor).cpu())


def _first_of_each(ids: Tensor) -> Tensor:
    """The first position of each distinct id, in ascending order of the ids."""
    ordered, order = torch.sort(ids, stable=True)
    fresh = torch.ones(len(ids), dtype=torch.bool)
    fresh[1:] = ordered[1:] != ordered[:-1]
    return order[fresh]


def _first_of_equals(marks: Tensor, rows: Tensor) -> Tensor:
    """For each of `rows`, the first of them with the same mark."""
    found, number = torch.unique(marks[rows], return_inverse=True)
    first = torch.full((len(found),), len(rows)).scatter_reduce_(0, number, torch.arange(len(rows)), reduce="amin")
    return rows[first[number]]


def _marks_of_images(image: Tensor) -> Tensor:
    """A hash of each image's pixels or features [I, ...]: [I], int64."""
    pixels = image.flatten(1).contiguous().view(torch.uint8)
    return _marks(F.pad(pixels, (0, -pixels.shape[1] % 8)).view(torch.int64))


def _marks_of_texts(text: Tokens) -> Tensor:
    """A hash of each caption's tokens [C, L], regardless of padding: [C], int64."""
    return _marks((text.ids + 1) * text.mask)


def _marks(values: Tensor) -> Tensor:
    """Hashes of rows of integers [N, L]: sums with pseudorandom weights modulo 2^64, so collisions are rare [N]."""
    weights = torch.arange(1, values.shape[1] + 1, device=values.device)
    for factor in MIXING:
        weights = (weights ^ (weights >> 30)) * factor
    return (values * weights).sum(dim=1)
