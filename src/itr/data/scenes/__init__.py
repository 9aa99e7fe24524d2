"""Synthetic images with captions whose true matches are known exactly, for tests, demonstrations and studies.

An image shows a few objects. A *sparse* caption describes one view of it (an object, a place, two objects, a relation,
or the background), so it is also true of other images: the false negatives of CUSA. The *dense* caption describes
everything, like the dense texts of D2S-VSE. Each caption has a `Claim`, so `truth_matrix` gives every true pair.

Measured on 500 test images (seed 0) with 5 captions each, in percent: density, the mean share of the other images that
a caption is also true of; expected R@1 of a model that ranks all true matches first, in random order; and the same if
true captions are ranked rarest first and true images by fewest objects, as a model can learn to do.

| difficulty | objects | density | R@1 i2t | R@1 t2i | rarest first: i2t | t2i |
|---|---|---|---|---|---|---|
| easy | 2-3 | 0.55 | 28.7 | 53.6 | 90.8 | 57.1 |
| medium | 2-4 | 0.98 | 18.7 | 36.7 | 79.8 | 43.8 |
| hard | 3-5 | 2.93 | 6.9 | 25.0 | 64.4 | 29.2 |
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from itr.data.scenes.captions import dense_caption, sparse_captions
from itr.data.scenes.render import render
from itr.data.scenes.world import (
    ATTRIBUTES,
    BACKGROUNDS,
    PLACES,
    Claim,
    ObjectClaim,
    Scene,
    SceneObject,
    claim_holds,
    related,
    truth_matrix,
)

__all__ = [
    "Claim",
    "ObjectClaim",
    "Scene",
    "SceneObject",
    "SceneSample",
    "SceneSettings",
    "claim_holds",
    "generate",
    "related",
    "sample",
    "truth_matrix",
]


@dataclass(frozen=True)
class _Difficulty:
    num_objects: tuple[int, int]
    num_attributes: tuple[int, int]  # minimum and maximum that a sparse caption states of an object
    varied: bool  # use synonyms and several sentence forms
    jitter: float  # maximum offset of an object from the center of its cell, as a fraction of the image side
    clutter: float


DIFFICULTIES = {
    "easy": _Difficulty(num_objects=(2, 3), num_attributes=(2, 3), varied=False, jitter=0.01, clutter=0.0),
    "medium": _Difficulty(num_objects=(2, 4), num_attributes=(2, 2), varied=True, jitter=0.02, clutter=0.0),
    "hard": _Difficulty(num_objects=(3, 5), num_attributes=(1, 3), varied=True, jitter=0.03, clutter=0.5),
}
MAX_CAPTIONS = 10
_IMAGE_SIZES = (32, 512)


@dataclass(frozen=True)
class SceneSettings:
    """Settings of the images and captions.

    Attributes:
        difficulty: "easy", "medium" or "hard".
        num_captions: number of sparse captions per image, or its minimum and maximum.
        image_size: side length of the square images in pixels.

    Raises:
        ValueError: a setting is out of range.
    """

    difficulty: str = "medium"
    num_captions: int | tuple[int, int] = 5
    image_size: int = 64

    def __post_init__(self) -> None:
        if self.difficulty not in DIFFICULTIES:
            raise ValueError(f"difficulty={self.difficulty!r} is unknown; it must be one of {', '.join(DIFFICULTIES)}")
        low, high = self.captions_range
        if not 1 <= low <= high <= MAX_CAPTIONS:
            raise ValueError(
                f"num_captions={self.num_captions} must be a number, or a minimum and maximum, from 1 to {MAX_CAPTIONS}"
            )
        if not _IMAGE_SIZES[0] <= self.image_size <= _IMAGE_SIZES[1]:
            raise ValueError(f"image_size={self.image_size} must be from {_IMAGE_SIZES[0]} to {_IMAGE_SIZES[1]} pixels")

    @property
    def captions_range(self) -> tuple[int, int]:
        """Minimum and maximum number of captions per image."""
        return (self.num_captions, self.num_captions) if isinstance(self.num_captions, int) else self.num_captions


@dataclass(frozen=True)
class SceneSample:
    """One image with its captions; caption n states claim n, and `dense` describes the whole scene."""

    index: int
    image: Image.Image
    captions: list[str]
    claims: list[Claim]
    dense: str
    scene: Scene


def generate(split: str, num: int, seed: int, settings: SceneSettings) -> Iterator[SceneSample]:
    """The first `num` samples of a split; see `sample`."""
    if num < 0:
        raise ValueError(f"num={num} must be 0 or more")
    return (sample(split, index, seed, settings) for index in range(num))


def sample(split: str, index: int, seed: int, settings: SceneSettings) -> SceneSample:
    """Sample `index` of a split. It depends only on the arguments, so samples can be made in any order and process.

    Raises:
        ValueError: `index` or `seed` is negative.
    """
    for name, value in (("index", index), ("seed", seed)):
        if value < 0:
            raise ValueError(f"{name}={value} must be 0 or more")
    difficulty = DIFFICULTIES[settings.difficulty]
    rng = np.random.default_rng(np.random.SeedSequence((seed, zlib.crc32(split.encode()), index)))
    scene = _scene(difficulty, rng)
    low, high = settings.captions_range
    num_captions = int(rng.integers(low, high + 1))
    pairs = sparse_captions(scene, num_captions, difficulty.num_attributes, difficulty.varied, rng)
    dense = dense_caption(scene, difficulty.varied, rng)
    image = render(scene, settings.image_size, difficulty.clutter, int(rng.integers(2**31)))
    return SceneSample(index, image, [text for text, _ in pairs], [claim for _, claim in pairs], dense, scene)


def _scene(difficulty: _Difficulty, rng: np.random.Generator) -> Scene:
    """A scene whose attributes are all drawn uniformly."""
    num_objects = int(rng.integers(difficulty.num_objects[0], difficulty.num_objects[1] + 1))
    items = [_object(int(cell), difficulty.jitter, rng) for cell in rng.permutation(len(PLACES))[:num_objects]]
    return Scene(tuple(items), BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))])


def _object(cell: int, jitter: float, rng: np.random.Generator) -> SceneObject:
    values = {name: options[int(rng.integers(len(options)))] for name, options in ATTRIBUTES.items() if name != "place"}
    row, column = divmod(cell, 3)
    shift = rng.uniform(-jitter, jitter, size=2)
    x, y = round((column + 0.5) / 3 + float(shift[0]), 4), round((row + 0.5) / 3 + float(shift[1]), 4)
    return SceneObject(**values, place=PLACES[cell], x=x, y=y)
