"""What `encode_text` and `encode_image` take, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from itr.checkpoints import open_checkpoint
from itr.errors import UserError
from itr.images.inputs import pixels_of


@pytest.fixture(scope="module")
def module(plain_checkpoint):
    return open_checkpoint(plain_checkpoint).eval()


@pytest.fixture(scope="module")
def array():
    return np.random.default_rng(0).integers(256, size=(40, 56, 3), dtype=np.uint8)


def test_a_string_is_one_caption(module):
    with torch.no_grad():
        one = module.encode_text("a dog").pooled
        assert one.shape[0] == 1
        torch.testing.assert_close(module.encode_text(["a dog", "two"]).pooled[:1], one)
        assert torch.equal(module.encode_text(np.array(["a dog"])).pooled, one)
        assert torch.equal(module.encode_text(("a dog",)).pooled, one)


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (b"a dog", "not a bytes"),
        (7, "not a int"),
        ({"a": 1}, "not a dict"),
        ([], "the list is empty"),
        (["a", b"b"], "contains a bytes"),
        (None, "not a NoneType"),
    ],
)
def test_other_captions_are_refused(module, captions, message):
    with pytest.raises(UserError, match=message):
        module.encode_text(captions)


def test_every_form_of_an_image_gives_the_same_embedding(module, array, tmp_path):
    image, path = Image.fromarray(array), tmp_path / "a.png"
    image.save(path)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    forms = [image, path, str(path), array, array[None], tensor, tensor[None], [image], (path, array)]
    with torch.no_grad():
        wanted = module.encode_image(pixels_of(image, module.backbone.image_spec)).pooled
        for form in forms:
            found = module.encode_image(form).pooled
            assert len(found) == (2 if isinstance(form, tuple) else 1)
            torch.testing.assert_close(found, wanted.expand_as(found))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda array: torch.from_numpy(array).permute(2, 0, 1) / 255, "must be uint8, from 0 to 255, and are float32"),
        (lambda array: array / 255, "and are float64"),
        (lambda array: array.astype(np.int64), "and are int64"),
        (lambda array: torch.from_numpy(array), r"shape \[40, 56, 3\] are not images"),
        (lambda array: array[..., 0], r"shape \[40, 56\] are not images"),
        (lambda array: [], "the list is empty"),
        (lambda array: "nowhere.jpg", "could not read the image nowhere.jpg: No such file"),
        (lambda array: {"image": array}, "cannot embed a dict as an image"),
        (lambda array: Image.fromarray(array[..., 0].astype(np.float32)), "range from 0 to 255"),
    ],
)
def test_other_images_are_refused(module, array, change, message):
    with pytest.raises(UserError, match=message):
        module.encode_image(change(array))
