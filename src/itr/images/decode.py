"""Encoded images: their size, their pixels, and smaller ones. It does without torch, so that writers start at once.

One rule holds everywhere: pixels are taken as they lie in the file. EXIF rotation and colour profiles are not applied,
as in the published preprocessing of CLIP.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

JPEG = b"\xff\xd8\xff"
# What Pillow may make of a file, whatever it is called. Others of its kinds run a program (EPS: Ghostscript), or are
# boxes of images whose header doesn't tell what is in them (ICO, ICNS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM")
TILE_WIDTH, TILE_LENGTH = 322, 323  # tags of TIFF


class BadImageError(ValueError):
    """An image that can't be decoded."""


def decode_pixels(data: bytes, max_pixels: int) -> np.ndarray:
    """Decode to RGB [H, W, 3], uint8.

    JPEG takes a fast path; whatever that refuses, and every other type, goes through Pillow. Transparent images lie
    on white; of an animation the first frame counts.

    Raises:
        BadImageError: if the bytes are no whole image, or their header announces more than `max_pixels`.
    """
    try:
        if header := _jpeg_header(data):
            height, width, colours, _ = header
            _check_pixels(height * width, max_pixels)
            if colours in ("RGB", "Gray", "YCbCr", "GRAY"):
                return np.asarray(simplejpeg.decode_jpeg(data, "RGB"))
        with _opened(data) as image:
            _check_pixels(_pixels(image), max_pixels)
            return np.array(to_rgb(image))
    except BadImageError:
        raise
    except Exception as error:  # decoders raise whatever they like on damaged bytes
        raise BadImageError(_reason(error)) from None


def _jpeg_header(data: bytes) -> tuple[int, int, str, str] | None:
    """Height, width, colours and subsampling of a JPEG of the usual kinds; None of others, which Pillow may know."""
    if data[:3] != JPEG:
        return None
    try:
        header: tuple[int, int, str, str] = simplejpeg.decode_jpeg_header(data)
        return header
    except ValueError:
        return None


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit counts
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image


def _pixels(image: Image.Image) -> int:
    """How many pixels are decoded: a TIFF's tile, which is decoded whole, may be larger than the image."""
    tags: Any = getattr(image, "tag_v2", {})
    return max(image.width * image.height, int(tags.get(TILE_WIDTH, 0)) * int(tags.get(TILE_LENGTH, 0)))


def _check_pixels(pixels: int, limit: int, whose: str = "data.max_pixels") -> None:
    if not 0 < pixels <= limit:
        raise BadImageError(f"its header says {pixels:,} pixels, more than {whose} = {limit:,}")


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB; what is transparent becomes white."""
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits and more a pixel: to 8 by their top byte
        values = np.asarray(image, dtype=np.float64)
        deep = values.max(initial=0) > 255
        return Image.fromarray((values / 257 if deep else values).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # converting would copy


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels, from the header alone.

    Raises:
        BadImageError: if there is no header of an image.
    """
    if header := _jpeg_header(data):
        return header[1], header[0]
    try:
        with _opened(data) as image:
            return image.size
    except Exception as error:
        raise BadImageError(_reason(error)) from None


def shrink(data: bytes, short_side: int, quality: int) -> bytes | None:
    """A JPEG whose short side has `short_side` pixels, or None where the image's has no more than that already.

    Large JPEGs are decoded at a half, quarter or eighth, yet at no less than twice the wanted size; the rest is one
    antialiased bicubic step. The result carries no EXIF, profile or comment.

    Raises:
        BadImageError: if the bytes are no whole image, or one of more pixels than Pillow takes for harmless.
    """
    try:
        with _opened(data) as image:
            _check_pixels(_pixels(image), Image.MAX_IMAGE_PIXELS or 0, "Pillow's limit")
            if min(image.size) <= short_side:
                return None
            scale = short_side / min(image.size)
            width, height = (max(1, round(side * scale)) for side in image.size)
            image.draft(None, (2 * width, 2 * height))  # type: ignore[arg-type]
            small = to_rgb(image).resize((width, height), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=quality, comment=b"")
        return buffer.getvalue()
    except Exception as error:
        raise BadImageError(_reason(error)) from None


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return "its header is damaged or of an unknown kind" if "cannot identify image file" in text else text
