"""Images with more than 8 bits a channel, or with floating-point values, scaled to 8 bits.

The scale never depends on how bright an image happens to be:

- 16-bit PNG, PGM and grey JPEG 2000: 65,535 is white.
- TIFF of 16 bits or less: white is the largest value of its depth, which its tag BitsPerSample declares, or its tag
  MaxSampleValue if that is 1,023, 4,095 or another 2^n - 1. Without the latter, cameras and microscopes store 10 to 14
  bits in 16 too, so an image whose largest value is below a quarter of 65,535 is refused.
- Floating-point values from 0 to 1 are fractions of white. Any other range is refused, and so are NaN and infinity.
- Integers of 32 bits and signed ones are refused, unless MaxSampleValue says what is white; those of 8 bits always.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

BITS, COMPRESSION, PHOTOMETRIC, MAX_SAMPLE_VALUE, PLANES, SAMPLES = 258, 259, 262, 281, 284, 339  # TIFF tags
WHITE_IS_ZERO, UNCOMPRESSED, SEPARATE, SIGNED = 0, 1, 2, 2  # values of these tags
WHITE_16 = 2**16 - 1
IMAGE_AND_TILE_SIZE = b"\xff\x4f\xff\x51"  # begins a codestream of JPEG 2000, before its numbers of channels and bits


class DepthError(ValueError):
    """It is not known which value of an image is white."""


def is_deep(image: Image.Image) -> bool:
    """Whether an image has integers of more than 8 bits or floating-point values, in one channel."""
    return image.mode.startswith("I") or image.mode == "F"


def check_depth(image: Image.Image) -> None:
    """Refuse a TIFF that Pillow reads as 8 bits a channel, but as other values than it holds.

    These are color images of 16 bits with fewer bits in use, of which Pillow keeps the upper 8; those whose channels
    are stored one after another without compression, of which it takes each byte for a value; and signed 8 bits.

    Raises:
        DepthError: it is one.
    """
    tags = _tags(image)
    bits = _largest(tags.get(BITS, 8))
    if _largest(tags.get(SAMPLES, 1)) == SIGNED:
        raise DepthError("its values are signed, so it is not known which is white; save it with unsigned ones")
    if bits <= 8:
        return
    if tags.get(PLANES) == SEPARATE and tags.get(COMPRESSION, UNCOMPRESSED) == UNCOMPRESSED:
        raise DepthError(
            f"its {bits}-bit channels are stored one after another, which Pillow reads wrongly; save it with the "
            "channels of each pixel together, or compressed"
        )
    declared, bands = _declared_white(image), image.getextrema()
    high = max(band[1] for band in bands if isinstance(band, tuple)) if image.mode == "RGB" else 255
    if 0 < declared < 2**bits - 1 or (not declared and 0 < 4 * high < 255):
        raise DepthError(
            f"its {bits}-bit values use only the lower part of their range, as 12-bit images do; save it with 8 bits "
            "a channel, or scale it to 16"
        )


def check_jpeg_2000(data: bytes) -> None:
    """Refuse a color JPEG 2000 of more than 8 bits: where it is brightest, Pillow makes it black (256 becomes 0).

    Raises:
        DepthError: it is one.
    """
    start = data.find(IMAGE_AND_TILE_SIZE, 0, 2**16)
    if start < 0 or len(data) <= start + 42:
        return
    channels, bits = int.from_bytes(data[start + 40 : start + 42], "big"), (data[start + 42] & 127) + 1
    if channels > 1 and bits > 8:
        raise DepthError(
            f"it is a JPEG 2000 with {channels} channels of {bits} bits, whose brightest values Pillow makes black; "
            "save it with 8 bits a channel"
        )


def to_8_bits(image: Image.Image) -> Image.Image:
    """Scale a deep image to mode L, or to LA if it has a transparent value; see this module for the rules.

    Raises:
        DepthError: it is not known which value is white.
    """
    values: np.ndarray = np.asarray(image, dtype=np.float64 if image.mode == "I" else np.float32)
    white = _white_of_floats(values) if image.mode == "F" else _white_of_integers(image, values)
    shares = values / white
    if _tags(image).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        shares = 1 - shares
    gray = Image.fromarray(np.rint(255 * shares).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return gray


def _white_of_floats(values: np.ndarray) -> float:
    if count := int((~np.isfinite(values)).sum()):
        raise DepthError(f"{count:,} of its {values.size:,} floating-point values are NaN or infinite; replace them")
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if low < 0 or high > 1:
        raise DepthError(
            f"its floating-point values range from {low:.6g} to {high:.6g}, so it is not known which is white; "
            "scale them to 0..1, or save 8 bits"
        )
    return 1.0


def _white_of_integers(image: Image.Image, values: np.ndarray) -> float:
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    tags, declared = _tags(image), _declared_white(image)
    bits = _largest(tags.get(BITS, 16))
    if low >= 0 and declared and high <= declared:
        return declared
    if not tags and 0 <= low <= high <= WHITE_16:  # PNG, JPEG 2000 and PGM
        return WHITE_16
    if image.mode != "I" and (bits < 16 or high == 0 or 4 * high >= WHITE_16):
        return float(2**bits - 1)
    kind = "signed or 32-bit integers" if image.mode == "I" else f"{bits}-bit values"
    raise DepthError(
        f"its {kind} range from {low:,} to {high:,}, so it is not known which is white; set the TIFF tag "
        "MaxSampleValue, such as 4095 for 12 bits, or save 8 bits"
    )


def _declared_white(image: Image.Image) -> int:
    """The tag MaxSampleValue, if it is 2^n - 1; other numbers are statistics of the image. 0 if there is none."""
    value = _largest(_tags(image).get(MAX_SAMPLE_VALUE, 0))
    return value if value >= 255 and value & (value + 1) == 0 else 0


def _largest(value: Any) -> int:
    """The largest number of a TIFF tag, which has one for each channel."""
    return int(max(value)) if isinstance(value, tuple) else int(value)


def _tags(image: Image.Image) -> Any:
    return getattr(image, "tag_v2", {})
