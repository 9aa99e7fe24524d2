"""Texts and images are embedded in their order, each once, by a checkpoint or a teacher."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from itr.checkpoints import open_checkpoint
from itr.embedding.encoder import Embedder, views
from itr.embedding.files import check_embeddings
from itr.embedding.models import open_embedder, teacher_embedder
from itr.errors import UserError
from itr.teachers.load import load_teacher
from itr.types import Encoded
from tiny_teachers import save_image_teacher, save_text_teacher

TEXTS = ["a red ball", "two", "a small blue box on a table", "two", "a", "the red box"]


def counting(seen: list[list[str]]) -> Embedder:
    """Embeds a text by its length and its first letter, and keeps the batches."""

    def encode(texts):
        seen.append(list(texts))
        rows = torch.tensor([[len(text), ord(text[0])] for text in texts], dtype=torch.float64)
        return Encoded(rows, rows[:, None], torch.ones(len(rows), 1, dtype=torch.bool))

    return Embedder(torch.device("cpu"), encode_text=encode, batch_size=2)


def save_images(folder: Path, number: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(256, size=(number, 20, 24, 3), dtype=np.uint8)
    paths = [folder / f"{at}.png" for at in range(number)]
    for path, pixels in zip(paths, noise, strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def test_each_text_is_encoded_once_longest_first_and_comes_back_in_order():
    seen: list[list[str]] = []
    encoded = counting(seen).texts(TEXTS)
    assert encoded.pooled.dtype == torch.float32
    assert encoded.pooled[:, 0].tolist() == [len(text) for text in TEXTS]
    assert encoded.pooled[:, 1].tolist() == [ord(text[0]) for text in TEXTS]
    assert encoded.tokens.shape[1] == 0
    assert [len(batch) for batch in seen] == [2, 2, 1]
    flat = [text for batch in seen for text in batch]
    assert sorted(flat) == sorted(set(TEXTS))
    assert [len(text) for text in flat] == sorted(map(len, flat), reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_cannot_be_decoded_are_named_and_the_others_keep_their_order(checkpoint, tmp_path, workers):
    paths = save_images(tmp_path, 5)
    paths[1].write_bytes(b"<html>")
    paths.append(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")  # reading it would block forever
    paths.append(tmp_path / "pipe.png")
    embedder = open_embedder(checkpoint, ["image"], "cpu", batch_size=2, num_workers=workers)
    found = embedder.images(paths)
    assert found.index == [0, 2, 3, 4]
    assert sorted(found.failed) == [1, 5, 6]
    assert found.digests[1] == hashlib.blake2b(b"<html>", digest_size=16).hexdigest()
    assert found.digests[5] == ""
    for place, number in enumerate(found.index):
        alone = embedder.images([paths[number]]).encoded
        torch.testing.assert_close(found.encoded.pooled[place], alone.pooled[0])
        assert found.encoded.unimodal is not None
        assert alone.unimodal is not None
        torch.testing.assert_close(found.encoded.unimodal[place], alone.unimodal[0])
    with pytest.raises(UserError, match=r"none of the 2 images could be decoded; .*1\.png"):
        embedder.images([paths[1], paths[5]])


@pytest.mark.slow
def test_a_checkpoint_embeds_texts_as_its_module_does(checkpoint):
    module = open_checkpoint(checkpoint)
    with torch.no_grad():
        wanted = module.encode_text(TEXTS)
    found = open_embedder(checkpoint, ["text"], "cpu", batch_size=2).texts(TEXTS)
    torch.testing.assert_close(found.pooled, wanted.pooled, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.unimodal, wanted.unimodal, atol=1e-5, rtol=1e-4)
    rough = open_embedder(checkpoint, ["text"], "cpu", batch_size=2, precision="bf16").texts(TEXTS)
    assert rough.pooled.dtype == torch.float32
    torch.testing.assert_close(rough.pooled, wanted.pooled, atol=0.1, rtol=0.1)
    assert not torch.equal(rough.pooled, found.pooled)


def test_a_teacher_embeds_as_itr_features_does(tmp_path):
    text, image = save_text_teacher(tmp_path / "text", TEXTS), save_image_teacher(tmp_path / "image")
    wanted = load_teacher("text", text).encode(TEXTS)
    embedder = open_embedder(text, ["text"], "cpu", batch_size=4)
    torch.testing.assert_close(embedder.texts(TEXTS).pooled, wanted, atol=1e-5, rtol=1e-4)
    assert embedder.model["encoder"] == "text"
    assert len(embedder.model["weights"]) == 32
    paths = save_images(tmp_path / "images", 3)
    teacher = load_teacher("image", image)
    assert teacher.transform is not None
    pixels = [teacher.transform(torch.from_numpy(np.array(Image.open(p))).permute(2, 0, 1)) for p in paths]
    found = teacher_embedder("image", image, "cpu", num_workers=0).images(paths)
    torch.testing.assert_close(found.encoded.pooled, teacher.encode(torch.stack(pixels)))
    assert found.encoded.unimodal is None


def test_which_embeddings_a_protocol_compares():
    nothing = torch.zeros(2, 0, 3), torch.zeros(2, 0, dtype=torch.bool)
    plain, own = Encoded(torch.ones(2, 3), *nothing), Encoded(torch.ones(2, 3), *nothing, torch.zeros(2, 4))
    for space, wanted in {
        "auto": {"sts": "uni"},
        "uni": {"sts": "uni"},
        "cross": {"sts": "cross"},
        "both": {"sts": "uni", "sts_cross": "cross"},
    }.items():
        found = views(own, "sts", space)
        assert {prefix: view.space for prefix, view in found.items()} == wanted
        assert all(view.rows is (own.pooled if view.space == "cross" else own.unimodal) for view in found.values())
    assert views(plain, "sts", "auto") == views(plain, "sts", "cross")
    for space in ("uni", "both"):
        with pytest.raises(UserError, match="no separate embeddings"):
            views(plain, "sts", space)


@pytest.mark.parametrize(
    ("value", "problem"), [(torch.nan, "is not finite"), (torch.inf, "is not finite"), (0, "is zero")]
)
def test_embeddings_without_a_direction_are_refused(value, problem):
    rows = torch.ones(4, 3)
    check_embeddings(rows, str)
    rows[[1, 3]] = value
    with pytest.raises(UserError, match=rf"^text 1 {problem} \(2 such rows\)"):
        check_embeddings(rows, lambda row: f"text {row}")
