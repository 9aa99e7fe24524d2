"""Embeddings from files: those that cannot be scored are refused with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from itr.embedding.files import load_embeddings
from itr.errors import UserError
from itr.evaluation.retrieval import evaluate


def arrays(**changes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {
        "image": rng.normal(size=(4, 3)).astype(np.float32),
        "text": rng.normal(size=(6, 3)).astype(np.float32),
        "image_id": np.array([7, 3, 9, 1]),
        "caption_id": np.array([5, 4, 3, 2, 1, 0]),
        "caption_image_id": np.array([1, 3, 3, 7, 9, 9]),
    }
    return {**found, **changes}


def saved(folder: Path, values: dict[str, np.ndarray]) -> Path:
    np.savez(folder / "e.npz", **values)
    return folder / "e.npz"


def test_both_formats_and_any_order_of_rows_give_the_same_metrics(tmp_path):
    values = arrays()
    order = np.array([2, 0, 1, 3])
    shuffled = values | {"image": values["image"][order], "image_id": values["image_id"][order]}
    save_file({name: torch.from_numpy(value.copy()) for name, value in shuffled.items()}, tmp_path / "e.safetensors")
    first = load_embeddings(saved(tmp_path, values | {"caption": np.array(["a", "b"])}))
    second = load_embeddings(tmp_path / "e.safetensors")
    assert first.image_id.tolist() == [1, 3, 7, 9]
    assert torch.equal(first.image.pooled, second.image.pooled)
    assert evaluate(first) == evaluate(second)


def test_ids_may_be_texts_of_digits(tmp_path):
    values = arrays()
    texts = {key: np.array([f"{id_:06d}" for id_ in ids]) for key, ids in values.items() if key.endswith("_id")}
    found = load_embeddings(saved(tmp_path, values | texts))
    assert found.image_id.tolist() == [1, 3, 7, 9]
    assert evaluate(found) == evaluate(load_embeddings(saved(tmp_path, values)))


@pytest.mark.parametrize("key", ["image_id", "caption_id", "caption_image_id"])
@pytest.mark.parametrize(
    ("text", "shown"), [("abc", "'abc'"), ("1.5", "'1.5'"), ("\u00b2", "'\u00b2'"), ("-1", "'-1'"), ("", "''")]
)
def test_other_texts_as_ids_are_named(tmp_path, key, text, shown):
    values = arrays(**{key: np.array(["1", text, *"23456789"][: len(arrays()[key])])})
    with pytest.raises(UserError, match=rf"e.npz: {key} holds texts, such as {shown}; it needs whole numbers"):
        load_embeddings(saved(tmp_path, values))


def test_values_of_another_kind_are_named_and_the_message_is_short(tmp_path):
    with pytest.raises(
        UserError, match=r"caption_id holds texts, such as 'xxxx.*characters; it needs whole numbers"
    ) as caught:
        load_embeddings(saved(tmp_path, arrays(caption_id=np.array(["x" * 10**6] * 6))))
    assert len(str(caught.value)) < 500
    with pytest.raises(UserError, match=r"image holds texts, such as 'a'; it needs numbers"):
        load_embeddings(saved(tmp_path, arrays(image=np.array(["a", "b"]))))
    with pytest.raises(UserError, match=r"image_id holds a number that is too large: '9999"):
        load_embeddings(saved(tmp_path, arrays(image_id=np.array(["9" * 30, "1", "2", "3"]))))


def edited(name: str, place, value) -> dict[str, np.ndarray]:
    values = arrays()
    values[name] = values[name].copy()
    values[name][place] = value
    return values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image": arrays()["image"]}, r"lacks text, image_id, .*itr embed"),
        (arrays(text=np.ones((6, 2), np.float32)), "image has width 3 and text 2"),
        (arrays(image=np.ones(4, np.float32)), r"image has shape \[4\]"),
        (arrays(image_id=np.array([1, 2, 3])), "image_id must be 4 whole numbers"),
        (arrays(caption_id=np.linspace(0, 1, 6)), "caption_id must be 6 whole numbers"),
        (arrays(image_id=np.array([7, 3, 3, 1])), "image_id 3 appears twice"),
        (arrays(caption_id=np.zeros(6, np.int64)), "caption_id 0 appears twice"),
        (arrays(caption_image_id=np.array([1, 3, 3, 7, 9, 8])), "1 captions belong to images"),
        (arrays(caption_image_id=np.array([1])), "caption_image_id must be 6"),
        (edited("text", (2, 1), np.nan), "text of id 3 is not finite"),
        (edited("image", 1, 0.0), "image of id 3 is zero"),
    ],
)
def test_embeddings_that_cannot_be_scored_are_refused(tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        load_embeddings(saved(tmp_path, values))


def test_files_that_are_not_embeddings(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_embeddings(tmp_path / "no.npz")
    for name in ("e.npz", "e.safetensors"):
        (tmp_path / name).write_bytes(b"<html>not found</html>")
        with pytest.raises(UserError, match="could not read"):
            load_embeddings(tmp_path / name)
    np.savez(tmp_path / "evil.npz", image=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="could not read"):
        load_embeddings(tmp_path / "evil.npz")
