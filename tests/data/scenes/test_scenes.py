"""Synthetic scenes: seeded, with captions that are true and worded as claimed, and visible attributes."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest

from itr.data.scenes import (
    DIFFICULTIES,
    Claim,
    ObjectClaim,
    Scene,
    SceneObject,
    SceneSample,
    SceneSettings,
    claim_holds,
    generate,
    sample,
    truth_matrix,
)
from itr.data.scenes.captions import NOUNS, VOCABULARY
from itr.data.scenes.render import extent, render
from itr.data.scenes.world import ATTRIBUTES, BACKGROUNDS, RELATIONS

PHRASES = {
    phrase: (name, value)
    for name, values in VOCABULARY.items()
    for value, phrases in values.items()
    for phrase in phrases
}
PATTERN = re.compile("|".join(rf"\b{phrase}\b" for phrase in sorted(PHRASES, key=len, reverse=True)))
WORDS = "a an and the in on is are there with also together can be seen image behind objects two three four five"
FILLER_WORDS = {*re.findall(r"\w+", WORDS), *NOUNS}


@pytest.fixture(scope="module", params=sorted(DIFFICULTIES))
def samples(request: pytest.FixtureRequest) -> list[SceneSample]:
    return list(generate("test", 500, 0, SceneSettings(request.param, image_size=32)))


def mentions(text: str) -> Counter[tuple[str, str]]:
    """The attribute values that a text mentions; fails on any other word that is not a known filler word."""
    rest = set(re.findall(r"\w+", PATTERN.sub(" ", text)))
    assert rest <= FILLER_WORDS, f"{text!r} has the unknown words {rest - FILLER_WORDS}"
    return Counter(PHRASES[phrase] for phrase in PATTERN.findall(text))


def stated_values(claim: Claim) -> Counter[tuple[str, str]]:
    pairs = [pair for item in claim.objects for pair in item.stated().items()]
    pairs += [(name, value) for name in ("relation", "background") if (value := getattr(claim, name)) is not None]
    return Counter(pairs)


def noun_phrases(text: str) -> list[Counter[tuple[str, str]]]:
    """The values of size, texture, colour and shape of each noun phrase, in text order."""
    nouns = "|".join(rf"\b{word}\b" for words in VOCABULARY["shape"].values() for word in words)
    pieces = re.findall(rf"\ban? ((?:\w+ )*?(?:{nouns}|{'|'.join(NOUNS)}))\b", text.replace("an image with", ""))
    return [mentions(piece) for piece in pieces]


def make_scene(*items: SceneObject) -> Scene:
    return Scene(items, "sand")


RED_CIRCLE = SceneObject("circle", "red", "large", "plain", "top left", 1 / 6, 1 / 6)
BLUE_STAR = SceneObject("star", "blue", "small", "striped", "middle right", 5 / 6, 0.5)


def with_value(item: SceneObject, name: str, value: str) -> SceneObject:
    return SceneObject(**{**asdict(item), name: value})


def test_each_phrase_means_one_value() -> None:
    num_phrases = sum(len(phrases) for values in VOCABULARY.values() for phrases in values.values())
    assert len(PHRASES) == num_phrases
    assert {name: tuple(values) for name, values in VOCABULARY.items()} == ATTRIBUTES | {
        "background": BACKGROUNDS,
        "relation": RELATIONS,
    }


def test_captions_say_what_their_claims_say(samples: list[SceneSample]) -> None:
    for item in samples:
        for text, claim in zip(item.captions, item.claims, strict=True):
            assert mentions(text) == stated_values(claim), text


def test_adjectives_describe_the_right_objects(samples: list[SceneSample]) -> None:
    for item in samples:
        for text, claim in zip(item.captions, item.claims, strict=True):
            parts = [stated_values(Claim((replace(part, place=None),))) for part in claim.objects]
            relation_first = text.startswith(tuple(p for ps in VOCABULARY["relation"].values() for p in ps))
            assert noun_phrases(text) == (parts[::-1] if relation_first else parts), text


def test_the_dense_caption_describes_everything(samples: list[SceneSample]) -> None:
    for item in samples:
        everything = Counter((name, getattr(thing, name)) for thing in item.scene.objects for name in ATTRIBUTES)
        everything["background", item.scene.background] += 1
        first, _, relation = item.dense.partition(". ")
        assert mentions(first) == everything
        assert sum(num for (name, _), num in mentions(relation).items() if name == "relation") == 1
        assert len(re.findall(r"\w+|[^\w\s]", item.dense)) <= 75  # fits the 77 tokens of CLIP


def test_captions_are_true_of_their_image_and_distinct(samples: list[SceneSample]) -> None:
    for item in samples:
        assert all(claim_holds(claim, item.scene) for claim in item.claims)
        assert len(set(item.captions)) == len(item.captions)


@pytest.mark.parametrize("difficulty", sorted(DIFFICULTIES))
def test_captions_of_an_image_cover_all_objects(difficulty: str) -> None:
    for item in generate("train", 50, 1, SceneSettings(difficulty, image_size=32)):
        for thing in item.scene.objects:
            assert any(part.matches(thing) for claim in item.claims for part in claim.objects)


def test_the_truth_matrix_equals_claim_holds_for_each_pair(samples: list[SceneSample]) -> None:
    claims = [claim for item in samples[:40] for claim in item.claims]
    scenes = [item.scene for item in samples[:60]]
    expected = np.array([[claim_holds(claim, scene) for scene in scenes] for claim in claims])
    np.testing.assert_array_equal(truth_matrix(claims, scenes), expected)


def test_the_truth_matrix_may_be_empty() -> None:
    assert truth_matrix([], [make_scene(RED_CIRCLE)]).shape == (0, 1)
    assert truth_matrix([Claim((ObjectClaim(),))], []).shape == (1, 0)


def test_two_objects_of_a_claim_must_be_different() -> None:
    claim = Claim((ObjectClaim(colour="red"), ObjectClaim(shape="circle")))
    other = replace(RED_CIRCLE, place="centre", x=0.5, y=0.5)
    assert not claim_holds(claim, make_scene(RED_CIRCLE, BLUE_STAR))
    assert claim_holds(claim, make_scene(RED_CIRCLE, other))
    assert truth_matrix([claim], [make_scene(RED_CIRCLE, BLUE_STAR), make_scene(RED_CIRCLE, other)]).tolist() == [
        [False, True]
    ]


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("middle right", {"left of", "above"}),
        ("top right", {"left of"}),
        ("bottom left", {"above"}),
    ],
)
def test_relations_compare_rows_and_columns(place: str, expected: set[str]) -> None:
    scene = make_scene(RED_CIRCLE, replace(BLUE_STAR, place=place))
    pair = (ObjectClaim(colour="red"), ObjectClaim(colour="blue"))
    assert {name for name in RELATIONS if claim_holds(Claim(pair, name), scene)} == expected


def test_density_of_false_negatives_is_as_documented(samples: list[SceneSample]) -> None:
    claims = [claim for item in samples for claim in item.claims]
    num_true = truth_matrix(claims, [item.scene for item in samples]).sum(axis=1)
    density = float((num_true - 1).mean()) / (len(samples) - 1)
    max_objects = max(len(item.scene.objects) for item in samples)
    low, high = {3: (0.003, 0.008), 4: (0.007, 0.013), 5: (0.02, 0.04)}[max_objects]
    assert low < density < high


def test_a_sample_depends_only_on_its_arguments() -> None:
    settings = SceneSettings(difficulty="hard", num_captions=(3, 6), image_size=32)
    many = list(generate("train", 6, 7, settings))
    for item in (*generate("train", 3, 7, settings), sample("train", 5, 7, settings)):
        twin = many[item.index]
        assert item.image.tobytes() == twin.image.tobytes()
        assert replace(item, image=twin.image) == twin


def test_splits_and_seeds_do_not_share_images() -> None:
    settings = SceneSettings(image_size=32)
    runs = [("train", 0), ("val", 0), ("test", 0), ("train", 1)]
    scenes = [item.scene for split, seed in runs for item in generate(split, 200, seed, settings)]
    assert len(set(scenes)) == len(scenes)


def test_a_range_of_caption_numbers() -> None:
    counts = {len(item.captions) for item in generate("train", 60, 0, SceneSettings(num_captions=(3, 6)))}
    assert counts == {3, 4, 5, 6}
    assert {len(item.captions) for item in generate("train", 20, 0, SceneSettings("easy", 10))} == {10}


def test_scenes_and_claims_survive_json(samples: list[SceneSample]) -> None:
    for item in samples[:50]:
        assert Scene.from_dict(json.loads(json.dumps(item.scene.as_dict()))) == item.scene
        assert [Claim.from_dict(json.loads(json.dumps(claim.as_dict()))) for claim in item.claims] == item.claims


@pytest.mark.parametrize(
    ("name", "value"),
    [("shape", "star"), ("colour", "green"), ("size", "small"), ("texture", "striped"), ("texture", "dotted")],
)
def test_changing_an_object_changes_only_its_part_of_the_image(name: str, value: str) -> None:
    size = 64
    before = np.asarray(render(make_scene(RED_CIRCLE, BLUE_STAR), size)).astype(int)
    after = np.asarray(render(make_scene(with_value(RED_CIRCLE, name, value), BLUE_STAR), size)).astype(int)
    differs = np.abs(after - before).max(axis=-1) > 0  # [H, W]
    reach = int(extent(RED_CIRCLE) * size) + 1
    centre = round(RED_CIRCLE.x * size)
    near = np.zeros_like(differs)
    near[max(0, centre - reach) : centre + reach + 1, max(0, centre - reach) : centre + reach + 1] = True
    assert (differs & near).sum() >= 30
    assert not (differs & ~near).any()


def test_backgrounds_and_values_look_different() -> None:
    for name, values in (*ATTRIBUTES.items(), ("background", BACKGROUNDS)):
        if name != "place":
            scenes = [
                Scene((RED_CIRCLE,), value) if name == "background" else make_scene(with_value(RED_CIRCLE, name, value))
                for value in values
            ]
            images = [np.asarray(render(scene, 64)).astype(float) for scene in scenes]
            distances = [np.abs(a - b).sum() for k, a in enumerate(images) for b in images[:k]]
            assert min(distances) > 3000, name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"difficulty": "tough"}, "difficulty='tough'.*easy, medium, hard"),
        ({"num_captions": 0}, "num_captions=0 .*1 to 10"),
        ({"num_captions": (4, 3)}, r"num_captions=\(4, 3\) .*1 to 10"),
        ({"num_captions": (1, 11)}, r"num_captions=\(1, 11\) .*1 to 10"),
        ({"image_size": 16}, "image_size=16 .*32 to 512"),
    ],
)
def test_invalid_settings_say_what_is_allowed(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SceneSettings(**settings)  # type: ignore[arg-type]


def test_invalid_arguments_raise() -> None:
    with pytest.raises(ValueError, match="num=-1"):
        generate("train", -1, 0, SceneSettings())
    with pytest.raises(ValueError, match="seed=-1"):
        sample("train", 0, -1, SceneSettings())
    with pytest.raises(ValueError, match=r"colour='pink'.*red"):
        ObjectClaim(colour="pink")
    with pytest.raises(ValueError, match="relation='above' needs 2"):
        Claim((ObjectClaim(),), "above")
    with pytest.raises(ValueError, match="unknown"):
        Claim.from_dict({"objects": [{}], "place": "centre"})
    with pytest.raises(ValueError, match="has repeats"):
        make_scene(RED_CIRCLE, RED_CIRCLE)
