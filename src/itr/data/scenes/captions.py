"""Captions of synthetic scenes: which views sparse captions describe, how claims are worded, and the dense caption.

Each phrase of `VOCABULARY` means exactly one value of one attribute, so a caption says exactly what its claim says.
"""

from __future__ import annotations

import numpy as np

from itr.data.scenes.world import RELATIONS, Claim, ObjectClaim, Scene, SceneObject, related

VOCABULARY: dict[str, dict[str, tuple[str, ...]]] = {
    "shape": {
        "circle": ("circle", "disc"),
        "square": ("square", "box"),
        "triangle": ("triangle", "wedge"),
        "star": ("star",),
        "cross": ("cross", "plus"),
        "ring": ("ring", "hoop"),
    },
    "colour": {
        "red": ("red", "crimson"),
        "green": ("green",),
        "blue": ("blue",),
        "yellow": ("yellow", "golden"),
        "purple": ("purple", "violet"),
        "orange": ("orange",),
        "white": ("white",),
        "black": ("black",),
    },
    "size": {"small": ("small", "little"), "large": ("large", "big")},
    "texture": {"plain": ("plain", "solid"), "striped": ("striped", "lined"), "dotted": ("dotted", "spotted")},
    "place": {
        "top left": ("top left", "upper left"),
        "top middle": ("top middle", "upper middle"),
        "top right": ("top right", "upper right"),
        "middle left": ("middle left",),
        "centre": ("centre", "very middle"),
        "middle right": ("middle right",),
        "bottom left": ("bottom left", "lower left"),
        "bottom middle": ("bottom middle", "lower middle"),
        "bottom right": ("bottom right", "lower right"),
    },
    "background": {
        "grass": ("grass", "lawn"),
        "sand": ("sand",),
        "water": ("water",),
        "stone": ("stone", "rock"),
        "wood": ("wood", "timber"),
    },
    "relation": {
        "left of": ("left of", "to the left of"),
        "right of": ("right of", "to the right of"),
        "above": ("above", "over"),
        "below": ("below", "under"),
    },
}
NOUNS = ("object", "thing")  # for an object whose shape is not stated
CAPTION_VIEWS = ("object", "place", "pair", "relation", "background")

_TEMPLATES: dict[str, tuple[str, ...]] = {
    "object": ("{a}", "there is {a}", "{a} can be seen", "an image with {a}"),
    "place": ("{a} in the {place}", "there is {a} in the {place}", "in the {place} there is {a}"),
    "pair": ("{a} and {b}", "there is {a} and also {b}", "{a} together with {b}"),
    "relation": ("{a} {relation} {b}", "{a} is {relation} {b}", "{relation} {b} there is {a}"),
    "background": ("{a} on {background}", "on {background} there is {a}", "{a} with {background} behind"),
}
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TRIES = 20


def sparse_captions(
    scene: Scene, num: int, num_attributes: tuple[int, int], varied: bool, rng: np.random.Generator
) -> list[tuple[str, Claim]]:
    """Captions that describe different views of a scene, each with its claim.

    Args:
        scene: a scene with at least two objects.
        num: number of captions.
        num_attributes: minimum and maximum number of shape, colour, size and texture to state of an object; a view of
            a single object states one more.
        varied: whether to use synonyms and several sentence forms.
        rng: random generator for every choice.
    """
    views = [
        CAPTION_VIEWS[k] for _ in range(-(-num // len(CAPTION_VIEWS))) for k in rng.permutation(len(CAPTION_VIEWS))
    ]
    mentions = dict.fromkeys(scene.objects, 0)
    captions: dict[Claim, str] = {}
    for view in views[:num]:
        claim, items = _claim(scene, view, num_attributes, mentions, rng)
        for _ in range(_TRIES):
            if claim not in captions:
                break
            claim, items = _claim(scene, view, num_attributes, mentions, rng)
        for item in items:
            mentions[item] += 1
        captions.setdefault(claim, word_claim(claim, varied, rng))
    result = [(text, claim) for claim, text in captions.items()]
    while len(result) < num:  # fewer views than captions: reword one of them
        claim = result[int(rng.integers(len(result)))][1]
        result.append((word_claim(claim, varied, rng), claim))
    return result


def _claim(
    scene: Scene, view: str, num_attributes: tuple[int, int], mentions: dict[SceneObject, int], rng: np.random.Generator
) -> tuple[Claim, list[SceneObject]]:
    """A claim for one kind of view about the objects mentioned least so far, and these objects."""
    order = rng.permutation(len(scene.objects))
    first, second = sorted((scene.objects[k] for k in order), key=mentions.__getitem__)[:2]
    if rng.random() < 0.5:
        first, second = second, first
    if view in ("pair", "relation"):
        relations = [name for name in RELATIONS if related(first, name, second)]
        relation = relations[int(rng.integers(len(relations)))] if view == "relation" else None
        return Claim((_describe(first, num_attributes, rng), _describe(second, num_attributes, rng)), relation), [
            first,
            second,
        ]
    if mentions[second] < mentions[first]:
        first = second
    if view == "place":
        return Claim((_describe(first, num_attributes, rng, place=True),)), [first]
    if view == "background":
        return Claim((_describe(first, num_attributes, rng),), background=scene.background), [first]
    return Claim((_describe(first, (num_attributes[0] + 1, num_attributes[1] + 1), rng),)), [first]


def _describe(
    item: SceneObject, num_attributes: tuple[int, int], rng: np.random.Generator, place: bool = False
) -> ObjectClaim:
    """A claim about some attributes of an object; shape and colour come before size and texture."""
    num = int(rng.integers(num_attributes[0], num_attributes[1] + 1))
    order = [
        name
        for names in (("shape", "colour"), ("size", "texture"))
        for name in (names if rng.random() < 0.5 else names[::-1])
    ]
    names = [*order[:num], *(["place"] if place else [])]
    return ObjectClaim(**{name: getattr(item, name) for name in names})


def word_claim(claim: Claim, varied: bool, rng: np.random.Generator) -> str:
    """A sentence that says exactly what the claim says."""
    parts = {slot: _noun_phrase(item, varied, rng) for slot, item in zip(("a", "b"), claim.objects, strict=False)}
    place = claim.objects[0].place
    view = "object"
    for name, value in (("place", place), ("background", claim.background), ("relation", claim.relation)):
        if value is not None:
            view, parts[name] = name, _phrase(name, value, varied, rng)
    if view == "object" and len(claim.objects) == 2:
        view = "pair"
    return _pick(_TEMPLATES[view], varied, rng).format(**parts)


def dense_caption(scene: Scene, varied: bool, rng: np.random.Generator) -> str:
    """A text that describes every object with all its attributes, the background and one relation."""
    items = [scene.objects[k] for k in rng.permutation(len(scene.objects))]
    phrases = [
        f"{_noun_phrase(ObjectClaim(item.shape, item.colour, item.size, item.texture), varied, rng)} in the "
        + _phrase("place", item.place, varied, rng)
        for item in items
    ]
    first, second = items[0], items[1]
    relations = [name for name in RELATIONS if related(first, name, second)]
    relation = relations[int(rng.integers(len(relations)))]
    pair = Claim((ObjectClaim(first.shape, first.colour), ObjectClaim(second.shape, second.colour)), relation)
    ground = _phrase("background", scene.background, varied, rng)
    things = f"{_NUMBERS[len(items)]} objects"
    openings = (f"{things} on {ground}", f"on {ground} there are {things}")
    return f"{_pick(openings, varied, rng)}: {', '.join(phrases)}. {word_claim(pair, varied, rng)}."


def _noun_phrase(item: ObjectClaim, varied: bool, rng: np.random.Generator) -> str:
    """A noun phrase such as "a small striped red circle"; the sentence adds the place."""
    stated = item.stated()
    words = [_phrase(name, stated[name], varied, rng) for name in ("size", "texture", "colour") if name in stated]
    words.append(_phrase("shape", stated["shape"], varied, rng) if "shape" in stated else _pick(NOUNS, varied, rng))
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words])


def _phrase(name: str, value: str, varied: bool, rng: np.random.Generator) -> str:
    return _pick(VOCABULARY[name][value], varied, rng)


def _pick(options: tuple[str, ...], varied: bool, rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))] if varied else options[0]
