"""The world of the synthetic images: what a scene contains, what a caption may claim, and which claims are true.

A claim describes one object, or two *different* objects, by some of their attributes; it is true of a scene that has
such objects. Two objects may also be related. Relations compare cells of the 3 x 3 grid, not pixels: "left of" is true
if the column of the first object is smaller than that of the second, "above" if its row is smaller, whatever the other
coordinate; objects in the same column are neither left nor right of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
PLACES = (
    *("top left", "top middle", "top right"),
    *("middle left", "centre", "middle right"),
    *("bottom left", "bottom middle", "bottom right"),
)
BACKGROUNDS = ("grass", "sand", "water", "stone", "wood")
RELATIONS = ("left of", "right of", "above", "below")
ATTRIBUTES = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "texture": TEXTURES, "place": PLACES}

_BIT = {
    pair: 1 << bit
    for bit, pair in enumerate(((name, value) for name, values in ATTRIBUTES.items() for value in values), start=1)
}
_PRESENT = 1  # bit 0, so that a claim without attributes does not match the padding of scenes with fewer objects
_ROWS = 256  # claims per step, so that the intermediate arrays stay in the cache


def _check(name: str, value: str | None, allowed: Sequence[str]) -> None:
    if value is not None and value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown; it must be one of {', '.join(allowed)}")


@dataclass(frozen=True)
class SceneObject:
    """One object; `x` and `y` are its center as fractions of the image side, and lie in the cell `place`."""

    shape: str
    colour: str
    size: str
    texture: str
    place: str
    x: float
    y: float

    def __post_init__(self) -> None:
        for name, allowed in ATTRIBUTES.items():
            _check(name, getattr(self, name), allowed)


@dataclass(frozen=True)
class Scene:
    """The content of one image: objects in different cells of the grid, on one background."""

    objects: tuple[SceneObject, ...]
    background: str

    def __post_init__(self) -> None:
        _check("background", self.background, BACKGROUNDS)
        places = [item.place for item in self.objects]
        if len(set(places)) < len(places):
            raise ValueError(f"places={places} has repeats; a cell of the grid can have at most one object")

    def as_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers, for JSON."""
        return {"objects": [asdict(item) for item in self.objects], "background": self.background}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scene:
        """The inverse of `as_dict`."""
        return cls(tuple(SceneObject(**item) for item in values["objects"]), values["background"])


@dataclass(frozen=True)
class ObjectClaim:
    """What a caption says about one object; None means not stated."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    texture: str | None = None
    place: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in ATTRIBUTES.items():
            _check(name, getattr(self, name), allowed)

    def stated(self) -> dict[str, str]:
        """The attributes that the claim states."""
        return {name: value for name, value in vars(self).items() if value is not None}  # `asdict` would deep-copy

    def matches(self, item: SceneObject) -> bool:
        """Whether the object has every attribute that the claim states."""
        return all(getattr(item, name) == value for name, value in self.stated().items())


@dataclass(frozen=True)
class Claim:
    """What a caption says: one object or two different ones exist, optionally related and on a background.

    `relation` goes from the first object to the second: "left of" says that the first is left of the second.
    """

    objects: tuple[ObjectClaim, ...]
    relation: str | None = None
    background: str | None = None

    def __post_init__(self) -> None:
        if len(self.objects) not in (1, 2):
            raise ValueError(f"len(objects)={len(self.objects)} must be 1 or 2")
        if self.relation is not None and len(self.objects) != 2:
            raise ValueError(f"relation={self.relation!r} needs 2 objects, not {len(self.objects)}")
        _check("relation", self.relation, RELATIONS)
        _check("background", self.background, BACKGROUNDS)

    def as_dict(self) -> dict[str, Any]:
        """Plain lists and strings, for JSON, without the attributes that are not stated."""
        values: dict[str, Any] = {"objects": [item.stated() for item in self.objects]}
        return values | {
            name: getattr(self, name) for name in ("relation", "background") if getattr(self, name) is not None
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Claim:
        """The inverse of `as_dict`; raises ValueError for an unknown key."""
        unknown = sorted(set(values) - {item.name for item in fields(cls)})
        if unknown:
            raise ValueError(f"keys={unknown} are unknown; a claim has objects, relation and background")
        objects = tuple(ObjectClaim(**item) for item in values["objects"])
        return cls(objects, values.get("relation"), values.get("background"))


def related(first: SceneObject, relation: str | None, second: SceneObject) -> bool:
    """Whether the relation is true from the first object to the second; None is always true."""
    if relation is None:
        return True
    (row1, column1), (row2, column2) = (divmod(PLACES.index(item.place), 3) for item in (first, second))
    by_relation = {
        "left of": column1 < column2,
        "right of": column1 > column2,
        "above": row1 < row2,
        "below": row1 > row2,
    }
    return by_relation[relation]


def claim_holds(claim: Claim, scene: Scene) -> bool:
    """Whether the claim is true of the scene, checked by trying every assignment of its objects."""
    if claim.background is not None and claim.background != scene.background:
        return False
    if len(claim.objects) == 1:
        return any(claim.objects[0].matches(item) for item in scene.objects)
    return any(
        claim.objects[0].matches(first) and claim.objects[1].matches(second) and related(first, claim.relation, second)
        for first in scene.objects
        for second in scene.objects
        if first is not second
    )


def truth_matrix(claims: Sequence[Claim], scenes: Sequence[Scene]) -> NDArray[np.bool_]:
    """The result of `claim_holds` for every claim and every scene.

    Returns:
        Entry [c, n] says whether claim c is true of scene n [num_claims, num_scenes].
    """
    objects = _object_bits(scenes)
    grounds = np.array([BACKGROUNDS.index(scene.background) for scene in scenes], dtype=np.int64)
    result = np.zeros((len(claims), len(scenes)), dtype=bool)
    groups: dict[tuple[int, str | None], list[int]] = {}
    for number, claim in enumerate(claims):
        groups.setdefault((len(claim.objects), claim.relation), []).append(number)
    for (num_objects, relation), numbers in groups.items():
        partners = _partner_bits(scenes, relation, objects.shape[1]) if num_objects == 2 else None
        for start in range(0, len(numbers), _ROWS):
            rows = numbers[start : start + _ROWS]
            result[rows] = _rows_true([claims[row] for row in rows], objects, partners)
    for number, claim in enumerate(claims):
        if claim.background is not None:
            result[number] &= grounds == BACKGROUNDS.index(claim.background)
    return result


def _object_bits(scenes: Sequence[Scene]) -> NDArray[np.uint32]:
    """One bit for each attribute value of each object; 0 for missing objects [num_scenes, K]."""
    max_objects = max((len(scene.objects) for scene in scenes), default=0)
    bits = np.zeros((len(scenes), max_objects), dtype=np.uint32)
    for row, scene in zip(bits, scenes, strict=True):
        for slot, item in enumerate(scene.objects):
            row[slot] = _PRESENT + sum(_BIT[name, getattr(item, name)] for name in ATTRIBUTES)
    return bits


def _partner_bits(scenes: Sequence[Scene], relation: str | None, max_objects: int) -> NDArray[np.uint16]:
    """Entry [n, k]: one bit for each other object of scene n that object k has the relation to."""
    bits = np.zeros((len(scenes), max_objects), dtype=np.uint16)
    for row, scene in zip(bits, scenes, strict=True):
        for k, first in enumerate(scene.objects):
            others = ((j, second) for j, second in enumerate(scene.objects) if j != k)
            row[k] = sum(1 << j for j, second in others if related(first, relation, second))
    return bits


def _matching(items: Sequence[ObjectClaim], objects: NDArray[np.uint32]) -> NDArray[np.uint16]:
    """Entry [c, n]: one bit for each object of scene n that matches the object claim c."""
    required = [_PRESENT + sum(_BIT[pair] for pair in item.stated().items()) for item in items]
    required_bits = np.array(required, dtype=np.uint32)[:, None]  # [c, 1]
    result = np.zeros((len(items), len(objects)), dtype=np.uint16)
    for slot in range(objects.shape[1]):
        result |= ((objects[:, slot] & required_bits) == required_bits).astype(np.uint16) << np.uint16(slot)
    return result


def _rows_true(
    claims: Sequence[Claim], objects: NDArray[np.uint32], partners: NDArray[np.uint16] | None
) -> NDArray[np.bool_]:
    """Truth, ignoring the background, of claims with the same number of objects and relation [c, num_scenes]."""
    first = _matching([claim.objects[0] for claim in claims], objects)
    if partners is None:
        return first > 0
    second = _matching([claim.objects[1] for claim in claims], objects)
    result = np.zeros(first.shape, dtype=bool)
    for slot in range(objects.shape[1]):
        result |= ((first & np.uint16(1 << slot)) > 0) & ((second & partners[:, slot]) > 0)
    return result
