"""Size and pixels of encoded images, and resizing. This module does not import torch, so that writers start quickly.

Pixels are always used as stored in the file: EXIF rotation and color profiles are not applied, as in CLIP's published
preprocessing.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from itr.images.depth import check_depth, check_jpeg_2000, is_deep, to_8_bits
from itr.images.kinds import reads_heif, type_of_bytes

JPEG = b"\xff\xd8\xff"
# Formats that Pillow may decode, whatever the file's extension. Some of its other formats run a program (EPS runs
# Ghostscript), or are containers whose header does not give the size of the image (ICO, ICNS).
PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM")
MODES = ("L", "RGB", "1", "P", "LA", "RGBA", "CMYK")  # those that backbones may convert in their own ways, and two more
EQUAL_MODES = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}
TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF tags


@cache
def pillow_formats() -> tuple[str, ...]:
    """`PILLOW_FORMATS`, and HEIC if pillow-heif is installed."""
    if not reads_heif():
        return PILLOW_FORMATS
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)
    return (*PILLOW_FORMATS, "HEIF")


class BadImageError(ValueError):
    """An image could not be decoded."""


def decode_pixels(data: bytes, max_pixels: int) -> np.ndarray:
    """Decode to RGB [H, W, 3], uint8; transparent images are placed on white.

    Raises:
        BadImageError: as `decode_stored`.
    """
    found = decode_stored(data, max_pixels)
    return found if isinstance(found, np.ndarray) else np.array(to_rgb(found))


def decode_stored(data: bytes, max_pixels: int) -> np.ndarray | Image.Image:
    """Decode to RGB [H, W, 3], uint8, or to an image in its own mode, if backbones convert this mode in their own ways.

    These are modes with transparency, palette, 1 bit, or other colors than RGB. Deep images are scaled to 8 bits, see
    `itr.images.depth`. JPEG uses a fast decoder; Pillow decodes what that rejects, and every other format. Of an
    animation, only the first frame is used.

    Raises:
        BadImageError: the image is damaged or truncated, its header gives more than `max_pixels`, or it is not known
            which of its values is white.
    """
    try:
        if header := _jpeg_header(data):
            height, width, colours, _ = header
            _check_pixels(height * width, max_pixels)
            if colours in ("RGB", "Gray", "YCbCr", "GRAY"):
                return np.asarray(simplejpeg.decode_jpeg(data, "RGB"))
        with _opened(data) as image:
            _check_pixels(_pixels(image), max_pixels)
            shallow = in_8_bits(image)
            if _is_plain(shallow):
                return np.array(to_rgb(shallow))
            return shallow.copy()
    except BadImageError:
        raise
    except Exception as error:  # decoders raise arbitrary types on damaged data
        raise BadImageError(_reason(error, data)) from None


def in_8_bits(image: Image.Image) -> Image.Image:
    """An image with 8 bits a channel, in one of `MODES`.

    Raises:
        DepthError: it is not known which of its values is white.
    """
    image.load()
    if is_deep(image):
        return to_8_bits(image)
    check_depth(image)
    return image if image.mode in MODES else image.convert(EQUAL_MODES.get(image.mode, "RGB"))


def _is_plain(image: Image.Image) -> bool:
    """Whether an image of 8 bits becomes RGB in the same way for all backbones."""
    return image.mode in ("L", "RGB") and "transparency" not in image.info


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
        with Image.open(io.BytesIO(data), formats=pillow_formats()) as image:
            if image.format == "JPEG2000":
                check_jpeg_2000(data)
            yield image


def _pixels(image: Image.Image) -> int:
    """Number of pixels to decode; a TIFF tile is decoded completely, and may be larger than the image."""
    tags: Any = getattr(image, "tag_v2", {})
    return max(image.width * image.height, int(tags.get(TILE_WIDTH, 0)) * int(tags.get(TILE_LENGTH, 0)))


def _check_pixels(pixels: int, limit: int, limit_name: str = "data.max_pixels") -> None:
    if not 0 < pixels <= limit:
        raise BadImageError(f"its header gives {pixels:,} pixels, more than {limit_name} = {limit:,}")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of 8 bits a channel to RGB; transparent parts become white."""
    if has_transparency(image):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # `convert` would copy


def has_transparency(image: Image.Image) -> bool:
    """Whether an image has an alpha channel, or a color that is transparent."""
    return image.mode in ("RGBA", "LA") or "transparency" in image.info


def drop_transparency(image: Image.Image) -> Image.Image:
    """Convert an image of 8 bits a channel to RGB; transparent parts show the color that is stored for them."""
    if "transparency" in image.info:  # Pillow would warn that it is lost
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


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
        raise BadImageError(_reason(error, data)) from None


def shrink(data: bytes, short_side: int, quality: int, flatten: bool = False) -> bytes | None:
    """Resize to a JPEG whose short side is `short_side` pixels; None if the image is not larger than that.

    None too for an image with transparency, a palette or 1 bit: backbones convert these in their own ways, and before
    or after they resize (`ImageSpec.to_rgb`), so a shard must keep them.

    Large JPEGs are decoded at 1/2, 1/4 or 1/8 size, but at least at twice the target size; the rest is one antialiased
    bicubic step. The result has no EXIF data, color profile or comment.

    Args:
        data: the encoded image.
        short_side: of the result, in pixels.
        quality: of the JPEG, from 1 to 100.
        flatten: resize images with transparency or a palette too, on white.

    Raises:
        BadImageError: as `decode_stored`, or the image exceeds Pillow's pixel limit.
    """
    try:
        with _opened(data) as image:
            _check_pixels(_pixels(image), Image.MAX_IMAGE_PIXELS or 0, "Pillow's limit")
            if min(image.size) <= short_side:
                return None
            scale = short_side / min(image.size)
            width, height = (max(1, round(side * scale)) for side in image.size)
            image.draft(None, (2 * width, 2 * height))  # type: ignore[arg-type]
            shallow = in_8_bits(image)
            if not flatten and not _shrinks_alike(shallow):
                return None
            small = to_rgb(shallow).resize((width, height), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=quality, comment=b"")
        return buffer.getvalue()
    except Exception as error:
        raise BadImageError(_reason(error, data)) from None


def _shrinks_alike(image: Image.Image) -> bool:
    """Whether backbones see the same image after it was resized and placed on white."""
    if image.mode in ("P", "1"):
        return False
    return not has_transparency(image) or image.convert("RGBA").getchannel("A").getextrema() == (255, 255)


def _reason(error: Exception, data: bytes) -> str:
    text = str(error) or type(error).__name__
    if "cannot identify image file" not in text:
        return text
    also = (
        ", such as a TIFF of 64-bit floats or of floats in several channels"
        if type_of_bytes(data[:32]) == "tif"
        else ""
    )
    return f"its header is damaged or its format is not supported{also}"
