"""Decoding of every kind of picture, and the transforms."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from itr.backbones import ImageSpec
from itr.data.images import Augmentation, BadImageError, EvaluationTransform, TrainingTransform, decode

SPEC = ImageSpec(size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(256, size=(height, width, 3), dtype=np.uint8)).convert(mode)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "1"])
def test_every_type_and_colour_mode_becomes_rgb(kind, mode):
    if (kind, mode) in {("PNG", "CMYK"), ("WEBP", "CMYK"), ("BMP", "CMYK"), ("GIF", "CMYK"), ("JPEG", "P")}:
        return  # the type has no such mode
    data = encoded(noise(20, 12, mode), kind)
    pixels = decode(data, 10**6)
    assert pixels.shape == (3, 12, 20)
    assert pixels.dtype == torch.uint8
    with Image.open(io.BytesIO(data)) as picture:
        expected = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(pixels.numpy(), expected)


def test_transparent_parts_lie_on_white():
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 0, 0))
    assert decode(encoded(picture, "PNG"), 100)[:, 0].T.tolist() == [[255, 0, 0], [255, 255, 255]]


def test_sixteen_bits_keep_their_brightness():
    picture = Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.uint16))
    assert decode(encoded(picture, "PNG"), 100)[0, 0].tolist() == [0, 128, 255]


def test_damaged_pictures_are_refused():
    whole = encoded(noise(64, 64), "JPEG")
    for data in (b"", b"<html>not found</html>", whole[: len(whole) // 2], encoded(noise(64, 64), "PNG")[:500]):
        with pytest.raises(BadImageError):
            decode(data, 10**6)


def test_a_bomb_is_refused_by_its_header():
    for kind in ("JPEG", "PNG"):
        with pytest.raises(BadImageError, match="10,000 pixels"):
            decode(encoded(Image.new("1", (100, 100)).convert("L"), kind), max_pixels=9999)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (16, 16), (40, 20), (20, 41), (1, 4000), (4000, 1)])
@pytest.mark.parametrize("resize", ["shortest", "squash"])
def test_any_size_comes_out_square(width, height, resize):
    spec = ImageSpec(size=16, mean=SPEC.mean, std=SPEC.std, resize=resize)
    pixels = decode(encoded(noise(width, height), "PNG"), 10**6)
    for transform in (EvaluationTransform(spec), TrainingTransform(spec, Augmentation(rand_augment=2))):
        out = transform(pixels)
        assert out.shape == (3, 16, 16)
        assert out.dtype == torch.uint8


def test_evaluation_resize_is_that_of_pillow():
    picture = noise(64, 48).resize((128, 96), Image.Resampling.BICUBIC)
    out = EvaluationTransform(SPEC)(decode(encoded(picture, "PNG"), 10**6)).numpy().astype(int)
    small = picture.resize((21, 16), Image.Resampling.BICUBIC).crop((2, 0, 18, 16))
    assert np.abs(out - np.asarray(small).transpose(2, 0, 1)).max() <= 1


def test_augmentation_can_be_switched_off():
    pixels = decode(encoded(noise(40, 30), "PNG"), 10**6)
    plain = TrainingTransform(SPEC, Augmentation(crop_scale=(1.0, 1.0)))
    assert torch.equal(plain(pixels), EvaluationTransform(SPEC)(pixels))
    mirrored = TrainingTransform(SPEC, Augmentation(crop_scale=(1.0, 1.0), horizontal_flip=1.0))
    assert torch.equal(mirrored(pixels), plain(pixels).flip(-1))


@pytest.mark.parametrize("settings", [{"crop_scale": (0, 1)}, {"crop_scale": (0.9, 0.5)}, {"horizontal_flip": 2}])
def test_impossible_augmentation_is_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Augmentation(**settings)
