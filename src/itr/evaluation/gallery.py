"""The embeddings of a split, each sample once, sorted by id."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from itr.data.shards.positives import find_rows
from itr.distributed import gather_uneven, largest
from itr.errors import UserError
from itr.evaluation.score import Score
from itr.evaluation.scoring import CosineScorer, Scorer
from itr.types import Batch, Encoded, Tokens

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
        same_as: the lowest id among the images with the same content, its own if there is no other [N]; None if
            unknown.
        num_samples: number of samples that were read; more than N if some of them have the same image.
    """

    image: Encoded
    image_id: Tensor
    text: Encoded
    text_id: Tensor
    text_image_id: Tensor
    scorer: Scorer = field(default_factory=CosineScorer)
    same_as: Tensor | None = None
    num_samples: int = 0

    def __post_init__(self) -> None:
        self.num_samples = self.num_samples or len(self.image_id)

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
            None if self.same_as is None else self.same_as[images],
        )

    @property
    def num_equal(self) -> int:
        """Number of images whose content another image with a lower id has too; 0 if unknown."""
        return 0 if self.same_as is None else len(self.same_as) - len(self.same_as.unique())

    def merged(self) -> Gallery:
        """The gallery with images of the same content as one image, which has the captions of all of them.

        Otherwise they would tie, and since ties count against the true match, none of their captions could find its
        image at rank 1, whatever the model.
        """
        if not self.num_equal:
            return self
        assert self.same_as is not None
        known, group = self.same_as.unique(return_inverse=True)
        rows = torch.arange(len(group))
        first = torch.full((len(known),), len(group)).scatter_reduce_(0, group, rows, reduce="amin")
        kept = self.rows(first.sort().values, slice(None))
        owner = self.image_id[first[group[self.own_image()]]]
        return replace(kept, text_image_id=owner, num_samples=self.num_samples)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of an embedding file: `image` [N, D], `text` [M, D], `image_id`, `caption_id`, `caption_image_id`.

        `scored_by` is the scorer's name; see `Encoded.arrays` for further embeddings. If images have the same content,
        `image_same_as` [N] is `same_as`, and if samples have the same image, `num_samples` is their number.
        """
        ids = {"image_id": self.image_id, "caption_id": self.text_id, "caption_image_id": self.text_image_id}
        if self.num_equal and self.same_as is not None:
            ids["image_same_as"] = self.same_as
        if self.num_samples != len(self.image_id):
            ids["num_samples"] = torch.tensor(self.num_samples)
        return {
            **self.image.arrays("image"),
            **self.text.arrays("text"),
            **{name: value.numpy() for name, value in ids.items()},
            "scored_by": np.array(self.scorer.name),
        }


@dataclass
class GalleryBuilder:
    """Collects the embeddings of all batches of an evaluation, and merges those of all processes.

    Samples with the same `image_id` are one image with the captions of all of them. Equal images share one embedding,
    and so do equal captions. The last digits of a tower's output depend on the batch, so without this a tie could
    become a hit or a miss when the batch size or the number of processes changes.

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
        self.ids.append((batch.image_id, batch.text_id, batch.text_image_id, *marks, _marks_of_samples(batch)))

    def build(self, scorer: Scorer | None = None) -> Gallery:
        """The embeddings of all processes, each sample once, sorted by id. Every process must call this.

        Raises:
            UserError: different images, or different captions, have the same id.
        """
        image_id, text_id, text_image_id, image_mark, text_mark, sample_mark = (
            gather_uneven(torch.cat(parts)).cpu() for parts in zip(*self.ids, strict=True)
        )
        _check_ids("image_id", image_id, image_mark)
        _check_ids("caption_id", text_id, text_image_id, text_mark)
        images, texts = self._merge(self.images), self._merge(self.texts)
        first_image, first_text = _first_of_each(image_id), _first_of_each(text_id)
        same_image = _first_of_equals(image_mark, first_image)
        return Gallery(
            images.rows(same_image),
            image_id[first_image],
            texts.rows(_first_of_equals(text_mark, first_text)),
            text_id[first_text],
            text_image_id[first_text],
            scorer or CosineScorer(),
            image_id[same_image],
            len(torch.stack([image_id, sample_mark]).unique(dim=1)[0]),
        )

    def _keep(self, encoded: Encoded) -> Encoded:
        kept = encoded if self.with_tokens else encoded.without_tokens()
        return kept.map(lambda tensor: tensor.detach())

    @staticmethod
    def _merge(parts: list[Encoded]) -> Encoded:
        joined = Encoded.concatenate(parts)
        joined = joined.padded(largest(joined.tokens.shape[1], joined.pooled.device))
        return joined.map(lambda tensor: gather_uneven(tensor).cpu())


def _check_ids(name: str, ids: Tensor, *contents: Tensor) -> None:
    """Refuse rows with the same id [n] and different contents [n]: metrics would silently leave some of them out."""
    ordered, order = torch.sort(ids, stable=True)
    again = ordered[1:] == ordered[:-1]
    for content in contents:
        differs = again & (content[order][1:] != content[order][:-1])
        if differs.any():
            what = "images" if name == "image_id" else "captions"
            raise UserError(
                f"{name} {int(ordered[1:][differs][0])} belongs to different {what} ({int(differs.sum())} such rows), "
                f"so all but one of them would be missing from the metrics. Give every image and every caption an id "
                f"of its own, or remove {name} from the shards"
            )


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


def _marks_of_samples(batch: Batch) -> Tensor:
    """The lowest caption id of each image in a batch, which distinguishes samples of the same image [I], int64."""
    index = batch.image_index
    marks = torch.full_like(batch.image_id, torch.iinfo(torch.int64).max)
    return marks.scatter_reduce_(0, index, batch.text_id, reduce="amin")


def _marks_of_texts(text: Tokens) -> Tensor:
    """A hash of each caption's tokens [C, L], regardless of padding: [C], int64."""
    return _marks((text.ids + 1) * text.mask)


def _marks(values: Tensor) -> Tensor:
    """Hashes of rows of integers [N, L]: sums with pseudorandom weights modulo 2^64, so collisions are rare [N]."""
    weights = torch.arange(1, values.shape[1] + 1, device=values.device)
    for factor in MIXING:
        weights = (weights ^ (weights >> 30)) * factor
    return (values * weights).sum(dim=1)
