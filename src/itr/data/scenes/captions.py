"""Wording of the made-up scenes: which views sparse captions tell, how claims read, and the dense caption.

A phrase of `VOCABULARY` stands for one value of one attribute and for nothing else, so a text says what its claim says.
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
NOUNS = ("object", "thing")  # for an object of untold shape
VIEWS = ("object", "place", "pair", "relation", "background")

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
    scene: Scene, num: int, told: tuple[int, int], varied: bool, rng: np.random.Generator
) -> list[tuple[str, Claim]]:
    """Captions that tell different views of a scene, each with its claim.

    Args:
        scene: at least two objects.
        num: number of captions.
        told: least and most of shape, colour, size and texture that a view tells of an object; the view of a single
            object tells one more.
        varied: whether synonyms and several sentence forms are used.
        rng: source of every choice.
    """
    views = [VIEWS[k] for _ in range(-(-num // len(VIEWS))) for k in rng.permutation(len(VIEWS))]
    mentions = dict.fromkeys(scene.objects, 0)
    captions: dict[Claim, str] = {}
    for view in views[:num]:
        claim, items = _claim(scene, view, told, mentions, rng)
        for _ in range(_TRIES):
            if claim not in captions:
                break
            claim, items = _claim(scene, view, told, mentions, rng)
        for item in items:
            mentions[item] += 1
        captions.setdefault(claim, word(claim, varied, rng))
    result = [(text, claim) for claim, text in captions.items()]
    while len(result) < num:  # a scene with fewer views than captions: another wording of one of them
        claim = result[int(rng.integers(len(result)))][1]
        result.append((word(claim, varied, rng), claim))
    return result


def _claim(
    scene: Scene, view: str, told: tuple[int, int], mentions: dict[SceneObject, int], rng: np.random.Generator
) -> tuple[Claim, list[SceneObject]]:
    """A claim of one kind of view about the objects least mentioned so far, and these objects."""
    order = rng.permutation(len(scene.objects))
    first, second = sorted((scene.objects[k] for k in order), key=mentions.__getitem__)[:2]
    if rng.random() < 0.5:
        first, second = second, first
    if view in ("pair", "relation"):
        relations = [name for name in RELATIONS if related(first, name, second)]
        relation = relations[int(rng.integers(len(relations)))] if view == "relation" else None
        return Claim((_tell(first, told, rng), _tell(second, told, rng)), relation), [first, second]
    if mentions[second] < mentions[first]:
        first = second
    if view == "place":
        return Claim((_tell(first, told, rng, place=True),)), [first]
    if view == "background":
        return Claim((_tell(first, told, rng),), background=scene.background), [first]
    return Claim((_tell(first, (told[0] + 1, told[1] + 1), rng),)), [first]


def _tell(item: SceneObject, told: tuple[int, int], rng: np.random.Generator, place: bool = False) -> ObjectClaim:
    """Some attributes of an object: shape and colour come before size and texture."""
    num = int(rng.integers(told[0], told[1] + 1))
    order = [
        name
        for names in (("shape", "colour"), ("size", "texture"))
        for name in (names if rng.random() < 0.5 else names[::-1])
    ]
    names = [*order[:num], *(["place"] if place else [])]
    return ObjectClaim(**{name: getattr(item, name) for name in names})


def word(claim: Claim, varied: bool, rng: np.random.Generator) -> str:
    """A sentence that says what the claim says, and nothing more."""
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
    """One text that tells every object with all its attributes, the background and one relation."""
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
    return f"{_pick(openings, varied, rng)}: {', '.join(phrases)}. {word(pair, varied, rng)}."


def _noun_phrase(item: ObjectClaim, varied: bool, rng: np.random.Generator) -> str:
    """For example "a small striped red circle"; the place is left to the sentence."""
    told = item.told()
    words = [_phrase(name, told[name], varied, rng) for name in ("size", "texture", "colour") if name in told]
    words.append(_phrase("shape", told["shape"], varied, rng) if "shape" in told else _pick(NOUNS, varied, rng))
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words])


def _phrase(name: str, value: str, varied: bool, rng: np.random.Generator) -> str:
    return _pick(VOCABULARY[name][value], varied, rng)


def _pick(options: tuple[str, ...], varied: bool, rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))] if varied else options[0]
