"""Size and pixels of encoded images, and resizing. This module does not import torch, so that writers start quickly.

Pixels are always used as stored in the file: EXIF rotation and color profiles are not applied, as in CLIP's published
preprocessing.
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
# Formats that Pillow may decode, whatever the file's extension. Some of its other formats run a program (EPS runs
# Ghostscript), or are containers whose header does not give the size of the image (ICO, ICNS).
PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM")
TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF tags


class BadImageError(ValueError):
    """An image could not be decoded."""


def decode_pixels(data: bytes, max_pixels: int) -> np.ndarray:
    """Decode to RGB [H, W, 3], uint8.

    JPEG uses a fast decoder; Pillow decodes what that rejects, and every other format. Transparent images are placed
    on white; of an animation, only the first frame is used.

    Raises:
        BadImageError: the image is damaged or truncated, or its header gives more than `max_pixels`.
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
    except Exception as error:  # decoders raise arbitrary types on damaged data
        raise BadImageError(_reason(error)) from None


def _jpeg_header(data: bytes) -> tuple[int, int, str, str] | None:
    """Height, width, color space and subsampling of a common JPEG; None for others, which Pillow may support."""
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
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we apply our own limit
        with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:
            yield image


def _pixels(image: Image.Image) -> int:
    """Number of pixels to decode; a TIFF tile is decoded completely, and may be larger than the image."""
    tags: Any = getattr(image, "tag_v2", {})
    return max(image.width * image.height, int(tags.get(TILE_WIDTH, 0)) * int(tags.get(TILE_LENGTH, 0)))


def _check_pixels(pixels: int, limit: int, limit_name: str = "data.max_pixels") -> None:
    if not 0 < pixels <= limit:
        raise BadImageError(f"its header gives {pixels:,} pixels, more than {limit_name} = {limit:,}")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB; transparent parts become white."""
    if image.mode.startswith("I") or image.mode == "F":  # more than 8 bits per pixel: scale 16 bits to 8
        values = np.asarray(image, dtype=np.float64)
        deep = values.max(initial=0) > 255
        return Image.fromarray((values / 257 if deep else values).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # `convert` would copy


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels, from the header alone.

    Raises:
        BadImageError: there is no valid image header.
    """
    if header := _jpeg_header(data):
        return header[1], header[0]
    try:
        with _opened(data) as image:
            return image.size
    except Exception as error:
        raise BadImageError(_reason(error)) from None


def shrink(data: bytes, short_side: int, quality: int) -> bytes | None:
    """Resize to a JPEG whose short side is `short_side` pixels; None if the image is not larger than that.

    Large JPEGs are decoded at 1/2, 1/4 or 1/8 size, but at least at twice the target size; the rest is one antialiased
    bicubic step. The result has no EXIF data, color profile or comment.

    Raises:
        BadImageError: the image is damaged or truncated, or exceeds Pillow's pixel limit.
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
    return "its header is damaged or its format is not supported" if "cannot identify image file" in text else text
