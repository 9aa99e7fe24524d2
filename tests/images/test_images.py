"""Decoding of every image format, and the transforms."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from itr.backbones import ImageSpec
from itr.images.decode import image_size, shrink
from itr.images.transforms import (
    Augmentation,
    BadImageError,
    EvaluationTransform,
    TrainingTransform,
    decode,
    stack_images,
)

SPEC = ImageSpec(size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(256, size=(height, width, 3), dtype=np.uint8)).convert(mode)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "1"])
def test_every_format_and_color_mode_becomes_rgb(kind, mode):
    if (kind, mode) in {("PNG", "CMYK"), ("WEBP", "CMYK"), ("BMP", "CMYK"), ("GIF", "CMYK"), ("JPEG", "P")}:
        return  # the format does not have this mode
    data = encoded(noise(20, 12, mode), kind)
    pixels = decode(data, 10**6)
    assert pixels.shape == (3, 12, 20)
    assert pixels.dtype == torch.uint8
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(pixels.numpy(), expected)


def test_transparent_parts_become_white():
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    assert decode(encoded(image, "PNG"), 100)[:, 0].T.tolist() == [[255, 0, 0], [255, 255, 255]]


def test_16_bit_images_keep_their_brightness():
    image = Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.uint16))
    assert decode(encoded(image, "PNG"), 100)[0, 0].tolist() == [0, 128, 255]


def test_damaged_images_are_rejected():
    whole = encoded(noise(64, 64), "JPEG")
    for data in (b"", b"<html>not found</html>", whole[: len(whole) // 2], encoded(noise(64, 64), "PNG")[:500]):
        with pytest.raises(BadImageError):
            decode(data, 10**6)


def test_a_decompression_bomb_is_rejected_by_its_header():
    for kind in ("JPEG", "PNG"):
        with pytest.raises(BadImageError, match="10,000 pixels"):
            decode(encoded(Image.new("1", (100, 100)).convert("L"), kind), max_pixels=9999)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_decompression_bomb_of_any_format_is_rejected(kind):
    data = encoded(Image.new("RGB" if kind == "WEBP" else "L", (1500, 1000)), kind)
    assert image_size(data) == (1500, 1000)
    with pytest.raises(BadImageError, match=r"1,500,000 pixels, more than data.max_pixels = 1,499,999"):
        decode(data, max_pixels=1_499_999)


def test_images_that_pillow_only_warns_about_are_rejected_without_a_warning():
    data = encoded(Image.new("1", (10_000, 10_000)), "PNG")  # 12 kB
    with pytest.raises(BadImageError, match=r"100,000,000 pixels, more than data.max_pixels"):
        decode(data, max_pixels=50_000_000)
    with pytest.raises(BadImageError, match="100,000,000 pixels, more than Pillow's limit"):
        shrink(data, 256, 95)
    for beyond in (
        data[:16] + struct.pack(">II", 20_000, 20_000),
        data[:16],
    ):  # Pillow rejects it, or cannot parse it
        with pytest.raises(BadImageError):
            decode(beyond + data[24:], max_pixels=10**9)


def test_sizes_hidden_from_the_header_cannot_bypass_the_limit():
    gif = bytearray(encoded(Image.new("P", (4, 4)), "GIF"))
    frame = gif.index(b",", 13 + 3 * (2 << (gif[10] & 7)))
    gif[frame + 5 : frame + 9] = struct.pack("<HH", 5000, 5000)  # the frame is larger than the screen
    with pytest.raises(BadImageError, match="25,000,000 pixels"):
        decode(bytes(gif), 10**7)
    tiff = tiled_tiff(10, 10, 1008)  # the tile is larger than the image, and is decoded completely
    assert decode(tiff, 1008**2).shape == (3, 10, 10)
    for action in (lambda: decode(tiff, 1008**2 - 1), lambda: shrink(tiled_tiff(10, 10, 10_000), 4, 90)):
        with pytest.raises(BadImageError, match="pixels, more than"):
            action()


def tiled_tiff(width: int, height: int, tile: int) -> bytes:
    """A gray TIFF with one tile."""
    packed = zlib.compress(bytes(tile * tile) if tile < 5000 else b"", 1)
    tags = [(256, width), (257, height), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile), (323, tile)]
    tags += [(324, 8 + 2 + 12 * 10 + 4), (325, len(packed))]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4) + packed


def test_formats_that_run_a_program_or_hide_their_size_are_rejected():
    inner = encoded(Image.new("1", (3000, 3000)), "PNG")
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22) + inner
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    for data in (icon, postscript):
        for action in (lambda d=data: decode(d, 10**8), lambda d=data: image_size(d), lambda d=data: shrink(d, 4, 90)):
            with pytest.raises(BadImageError, match="its format is not supported"):
                action()


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns about odd tags and continues
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated_and_flipped_bytes_are_rejected_or_give_an_image_of_an_allowed_size(kind):
    whole = encoded(noise(24, 16), kind)
    rng = np.random.default_rng(0)
    rejected = 0
    for _ in range(150):
        data = bytearray(whole)
        data[rng.integers(min(len(data), 200))] ^= 1 << rng.integers(8)  # mostly in the header
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        try:
            assert decode(bytes(data[: rng.integers(len(data) // 2, 2 * len(data))]), 10_000)[0].numel() <= 10_000
        except BadImageError:
            rejected += 1
    assert rejected


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_is_used(kind):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=10, **options)
    pixels = decode(data, 100)
    assert pixels.shape == (3, 6, 8)
    assert pixels[:, 3, 4].tolist() == [255, 0, 0]


def test_exif_rotation_is_ignored_in_progressive_gray_and_cmyk_jpegs():
    exif = Image.Exif()
    exif[274] = 6  # rotated by 90 degrees
    for mode in ("RGB", "L", "CMYK"):
        pixels = decode(encoded(noise(20, 12, mode), "JPEG", progressive=True, exif=exif, quality=95), 1000)
        assert pixels.shape == (3, 12, 20)


def test_unusual_jpeg_subsampling_is_decoded_and_still_checked_for_bombs():
    gray = Image.new("RGB", (48, 48), (128, 128, 128))  # all blocks are equal, so they are valid for any subsampling
    data = bytearray(encoded(gray, "JPEG", keep_rgb=True, subsampling=0))
    header = data.index(b"\xff\xc0")
    data[header + 11] = 0x31  # three columns of the first component to one of the others
    assert np.array_equal(decode(bytes(data), 48 * 48), np.full((3, 48, 48), 128))
    data[header + 5 : header + 9] = (10_000).to_bytes(2, "big") * 2
    with pytest.raises(BadImageError, match="gives 100,000,000 pixels"):
        decode(bytes(data), 10**8 - 1)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (16, 16), (40, 20), (20, 41), (1, 4000), (4000, 1)])
@pytest.mark.parametrize("resize", ["shortest", "squash"])
def test_images_of_any_size_become_square(width, height, resize):
    spec = ImageSpec(size=16, mean=SPEC.mean, std=SPEC.std, resize=resize)
    pixels = decode(encoded(noise(width, height), "PNG"), 10**6)
    for transform in (EvaluationTransform(spec), TrainingTransform(spec, Augmentation(rand_augment=2))):
        out = transform(pixels)
        assert out.shape == (3, 16, 16)
        assert out.dtype == torch.uint8


def test_evaluation_resizing_matches_pillow():
    image = noise(64, 48).resize((128, 96), Image.Resampling.BICUBIC)
    out = EvaluationTransform(SPEC)(decode(encoded(image, "PNG"), 10**6)).numpy().astype(int)
    small = image.resize((21, 16), Image.Resampling.BICUBIC).crop((2, 0, 18, 16))
    assert np.abs(out - np.asarray(small).transpose(2, 0, 1)).max() <= 1


@pytest.mark.parametrize("kind", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize(("width", "height"), [(640, 427), (60, 500), (17, 300), (16, 16), (16, 40), (5, 7)])
def test_pixels_equal_torchvision_bit_for_bit(width, height, kind):
    spec = ImageSpec(size=16, mean=SPEC.mean, std=SPEC.std, interpolation=kind, crop_offset="even")
    mode, pixels = InterpolationMode(kind), decode(encoded(noise(width, height), "JPEG", quality=95), 10**6)
    assert pixels.stride(0) == 1  # channels last, as from the decoders
    augmentation = Augmentation(crop_scale=(0.2, 1.0), crop_ratio=(0.5, 2.0))
    ours = TrainingTransform(spec, augmentation)
    theirs = v2.RandomResizedCrop(16, (0.2, 1.0), (0.5, 2.0), interpolation=mode, antialias=True)
    for draw in range(20):
        torch.manual_seed(draw)
        cropped = ours(pixels)
        torch.manual_seed(draw)
        assert torch.equal(cropped, theirs(pixels))
    if max(width, height) <= 8 * min(width, height):
        reference = v2.Compose([v2.Resize(16, interpolation=mode, antialias=True), v2.CenterCrop(16)])
        assert torch.equal(EvaluationTransform(spec)(pixels), reference(pixels))


def test_stacking_keeps_the_memory_layout():
    planes = [torch.randint(256, (3, 4, 5), dtype=torch.uint8) for _ in range(3)]
    pixels = [image.permute(1, 2, 0).contiguous().permute(2, 0, 1) for image in planes]
    crops = [image[:, :, 1:4] for image in pixels]
    for images, last in ((planes, False), (pixels, True), ([pixels[0], planes[1], pixels[2]], True), (crops, True)):
        batch = stack_images(images)
        assert torch.equal(batch, torch.stack(images))
        assert batch.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def test_augmentation_can_be_disabled():
    pixels = decode(encoded(noise(40, 30), "PNG"), 10**6)
    plain = TrainingTransform(SPEC, Augmentation(crop_scale=(1.0, 1.0)))
    assert torch.equal(plain(pixels), EvaluationTransform(SPEC)(pixels))
    mirrored = TrainingTransform(SPEC, Augmentation(crop_scale=(1.0, 1.0), horizontal_flip=1.0))
    assert torch.equal(mirrored(pixels), plain(pixels).flip(-1))


@pytest.mark.parametrize("settings", [{"crop_scale": (0, 1)}, {"crop_scale": (0.9, 0.5)}, {"horizontal_flip": 2}])
def test_invalid_augmentation_is_rejected(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Augmentation(**settings)
