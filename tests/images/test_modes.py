"""Images of every mode reach a backbone as its published preprocessing shows them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
from PIL import Image
from transformers import CLIPImageProcessor

from itr.backbones import CLIP, VSE, ImageSpec
from itr.images.decode import in_8_bits, shrink
from itr.images.transforms import Augmentation, EvaluationTransform, TrainingTransform, read_view

SIZE = 32
MODES = ["L", "RGB", "CMYK", "1", "P", "LA", "RGBA", "P with transparency", "L with transparency"]


def spec(to_rgb: str) -> ImageSpec:
    return ImageSpec(SIZE, (0.5,) * 3, (0.5,) * 3, to_rgb=to_rgb, crop_offset="down" if to_rgb == "white" else "even")


def scene(width: int = 90, height: int = 70) -> Image.Image:
    """Smooth colors with hard edges, so that an order of steps or a kind of resizing that differs is visible."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    colors = np.stack([255 * x, 255 * y, 127 + 127 * np.sin(20 * x * y)], axis=-1)
    colors[20:40, 30:60] = (250, 10, 20)
    return Image.fromarray(colors.astype(np.uint8))


def in_mode(image: Image.Image, mode: str) -> tuple[bytes, Image.Image]:
    """The encoded image in a mode, and Pillow's view of it."""
    image = image.convert("RGB")
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, image.width, dtype=np.uint8), (image.height, 1)))
    alpha.paste(0, (0, 0, image.width // 3, image.height // 2))
    options: dict[str, object] = {"format": "TIFF" if mode == "CMYK" else "PNG"}
    if mode.endswith("transparency"):
        options["transparency"] = image.convert(mode[0]).getpixel((image.width // 2, image.height // 2))
    converted = image.convert(mode.partition(" ")[0])
    if mode in ("LA", "RGBA"):
        converted.putalpha(alpha)
    stream = io.BytesIO()
    converted.save(stream, **options)
    return stream.getvalue(), Image.open(io.BytesIO(stream.getvalue()))


def real_images(shared: Path) -> list[Image.Image]:
    folder = shared / "data" / "coco-sample"
    rows = [json.loads(line) for line in (folder / "val.jsonl").read_text().split("\n")[:6]]
    return [Image.open(folder / row["image"]) for row in rows]


def theirs_open_clip(image: Image.Image) -> np.ndarray:
    transform = open_clip.image_transform(SIZE, is_train=False, mean=(0,) * 3, std=(1,) * 3)
    return 255 * transform(image).numpy()


def theirs_transformers(image: Image.Image) -> np.ndarray:
    processor = CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, do_normalize=False, do_rescale=False
    )
    return processor(image, return_tensors="np")["pixel_values"][0].astype(float)


PUBLISHED = [("after_resize", theirs_open_clip), ("white", theirs_transformers)]


def check_pixels(images: list[Image.Image], mode: str, to_rgb: str, theirs) -> None:
    transform = EvaluationTransform(spec(to_rgb))
    for image in images:
        data, stored = in_mode(image, mode)
        ours = read_view(data, 10**7, transform).numpy()
        assert np.abs(ours - theirs(stored)).max() <= 1.01  # of 255: rounding


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # Pillow, in the published preprocessing
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("to_rgb", "theirs"), PUBLISHED)
def test_pixels_match_the_published_preprocessing(mode, to_rgb, theirs):
    sizes = [(90, 70), (SIZE, SIZE), (80, 73), (75, 80)]  # from the last two, 3 and 2 pixels are cropped
    check_pixels([scene(*size) for size in sizes], mode, to_rgb, theirs)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("to_rgb", "theirs"), PUBLISHED)
def test_pixels_of_real_images_match_the_published_preprocessing(shared, mode, to_rgb, theirs):
    check_pixels(real_images(shared), mode, to_rgb, theirs)


def test_the_two_ways_differ_where_images_are_transparent():
    data, _ = in_mode(scene(), "RGBA")
    white, black = (
        read_view(data, 10**7, EvaluationTransform(spec(way)))[:, 4, 4] for way in ("white", "after_resize")
    )
    assert white.tolist() == [255, 255, 255]
    assert black.tolist() == [0, 0, 0]


def test_timm_ignores_transparency_before_it_resizes():
    data, stored = in_mode(scene(), "RGBA")
    ours = read_view(data, 10**7, EvaluationTransform(spec("drop"))).numpy()
    assert np.abs(ours - theirs_open_clip(stored.convert("RGB"))).max() <= 1.01


def test_each_backbone_has_the_rule_of_its_published_preprocessing():
    small = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    clip = CLIP(config={"embed_dim": 16, "vision_cfg": small, "text_cfg": text}, image_mean=(0.5, 0.5, 0.5))
    assert (clip.image_spec.to_rgb, clip.image_spec.crop_offset) == ("after_resize", "even")
    spec = VSE().image_spec
    assert (spec.to_rgb, spec.crop_offset) == ("white", "down")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rand_augment", [0, 1])
def test_training_takes_images_of_every_mode(mode, rand_augment):
    data, _ = in_mode(scene(), mode)
    for to_rgb in ("white", "after_resize"):
        transform = TrainingTransform(spec(to_rgb), Augmentation(rand_augment=rand_augment, horizontal_flip=0.5))
        assert read_view(data, 10**7, transform).shape == (3, SIZE, SIZE)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("to_rgb", ["white", "drop", "after_resize"])
def test_images_resized_in_preparation_look_like_the_original(mode, to_rgb):
    transform = EvaluationTransform(spec(to_rgb))
    data, _ = in_mode(scene(300, 240), mode)
    resized = shrink(data, 4 * SIZE, 95) or data
    ours, direct = (read_view(found, 10**7, transform).numpy().astype(int) for found in (resized, data))
    assert np.abs(ours - direct).mean() < 2
    assert (resized is data) == (mode not in ("L", "RGB", "CMYK"))


def test_an_opaque_image_with_alpha_is_resized():
    stream = io.BytesIO()
    scene().convert("RGBA").save(stream, "PNG")
    assert shrink(stream.getvalue(), 20, 95)
    assert shrink(in_mode(scene(), "P")[0], 20, 95, flatten=True)


@pytest.mark.parametrize("to_rgb", ["white", "drop", "after_resize"])
def test_rare_modes_become_rgb(to_rgb):
    red = Image.merge("LAB", [Image.new("L", (SIZE, SIZE), value) for value in (138, 209, 198)])
    for image in (red, Image.new("YCbCr", (SIZE, SIZE), (76, 85, 255))):
        stream = io.BytesIO()
        image.save(stream, "TIFF")
        found = read_view(stream.getvalue(), 10**6, EvaluationTransform(spec(to_rgb)))[:, 3, 3]
        assert np.abs(found.numpy().astype(int) - [255, 0, 0]).max() <= 6
    assert in_8_bits(scene().convert("RGBA").convert("RGBa")).mode == "RGBA"
    assert in_8_bits(scene().convert("P").convert("PA")).mode == "RGBA"
