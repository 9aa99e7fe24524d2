"""Images with more than 8 bits a channel keep their range, or are refused by name."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from itr.images.decode import decode_pixels, image_size, shrink
from itr.images.transforms import BadImageError, decode

MAX_SAMPLE_VALUE, PHOTOMETRIC, SAMPLE_FORMAT = 281, 262, 339
RAMP = np.tile(np.linspace(0, 1, 256, dtype=np.float32), (8, 1))


def encoded(values: np.ndarray, kind: str = "TIFF", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, kind, **options)
    return stream.getvalue()


def check_ramp(data: bytes, step: int = 1) -> None:
    """All channels rise from 0 to 255."""
    pixels = decode_pixels(data, 10**6)
    expected = np.rint(np.linspace(0, 255, pixels.shape[1]))[None, :, None]
    assert np.abs(pixels.astype(int) - expected).max() <= step


def tiff_of(bits: int, values: list[int], photometric: int = 1, color: bool = False) -> bytes:
    """An uncompressed TIFF of one row, with values packed to `bits` bits."""
    packed = int("".join(f"{value:0{bits}b}" for value in values), 2).to_bytes((bits * len(values) + 7) // 8, "big")
    if bits == 16:
        packed = struct.pack(f"<{len(values)}H", *values)
    samples = 3 if color else 1
    tags = [(256, len(values) // samples), (257, 1), (258, bits), (259, 1), (262, 2 if color else photometric)]
    tags += [(273, 0), (277, samples), (278, 1), (279, len(packed))]
    place = 8 + 2 + 12 * len(tags) + 4
    entries = b""
    for tag, value in tags:
        if tag == 258 and color:
            entries += struct.pack("<HHII", tag, 3, 3, place)
        else:
            entries += struct.pack("<HHII", tag, 4, 1, place + 6 * color if tag == 273 else value)
    return (
        b"II*\0"
        + struct.pack("<IH", 8, len(tags))
        + entries
        + bytes(4)
        + struct.pack("<3H", *[bits] * 3) * color
        + packed
    )


def test_floats_are_fractions_of_white():
    check_ramp(encoded(RAMP), step=0)
    assert decode_pixels(encoded(RAMP / 2), 10**6).max() == 128


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (RAMP * 255, "range from 0 to 255"),
        (RAMP * 2 - 1, "range from -1 to 1"),
        (np.where(RAMP < 0.01, np.nan, RAMP), "24 of its 2,048 floating-point values are NaN"),
        (np.where(RAMP < 0.01, -np.inf, RAMP), "NaN or infinite"),
    ],
)
def test_other_floats_are_refused_by_their_range(values, message):
    for action in (lambda: decode(encoded(values), 10**6), lambda: shrink(encoded(values), 4, 90)):
        with pytest.raises(BadImageError, match=message):
            action()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000", "PPM"])
def test_16_bits_are_scaled_by_their_depth(kind):
    check_ramp(encoded((RAMP * 65535).astype(np.uint16), kind), step=1 if kind != "JPEG2000" else 2)


def test_a_dark_16_bit_png_stays_dark():
    dark = np.full((4, 4), 250, dtype=np.uint16)
    assert decode_pixels(encoded(dark, "PNG"), 100).tolist() == np.full((4, 4, 3), 1).tolist()
    assert decode_pixels(encoded(0 * dark), 100).max() == 0


def test_12_bits_keep_their_range():
    twelve = (RAMP * 4095).astype(np.uint16)
    check_ramp(encoded(twelve, tiffinfo={MAX_SAMPLE_VALUE: 4095}))
    check_ramp(tiff_of(12, list(range(0, 4096, 15))))
    check_ramp(b"P5 256 1 4095\n" + twelve[0].astype(">u2").tobytes())
    check_ramp(tiff_of(16, [65535 - value for value in range(0, 65536, 257)], photometric=0))


@pytest.mark.parametrize("options", [{}, {"tiffinfo": {MAX_SAMPLE_VALUE: 3071}}])
def test_12_bits_that_no_tag_declares_are_refused(options):
    with pytest.raises(BadImageError, match=r"16-bit values range from 0 to 4,095.*MaxSampleValue, such as 4095"):
        decode(encoded((RAMP * 4095).astype(np.uint16), **options), 10**6)


def test_wide_integers_are_refused_unless_declared():
    wide = (RAMP * 70000).astype(np.int32)
    with pytest.raises(BadImageError, match="signed or 32-bit integers range from 0 to 70,000"):
        decode(encoded(wide), 10**6)
    check_ramp(encoded((RAMP * 1023).astype(np.int32), tiffinfo={MAX_SAMPLE_VALUE: 1023}))


def test_color_images_of_16_bits_are_scaled_or_refused():
    values = [channel for value in range(0, 65536, 257) for channel in [value] * 3]
    check_ramp(tiff_of(16, values, color=True))
    with pytest.raises(BadImageError, match="use only the lower part of their range"):
        decode(tiff_of(16, [value // 16 for value in values], color=True), 10**6)


def planar_tiff(values: list[bytes], bits: int) -> bytes:
    """An uncompressed TIFF of one row whose channels are stored one after another."""
    width, start = len(values[0]) * 8 // bits, 8 + 2 + 12 * 10 + 4
    tags = [(256, 1, width), (257, 1, 1), (258, 3, start), (259, 1, 1), (262, 1, 2), (273, 3, start + 6)]
    tags += [(277, 1, 3), (278, 1, 1), (279, 3, start + 18), (284, 1, 2)]
    entries = b"".join(struct.pack("<HHII", tag, 3 if count == 1 or tag == 258 else 4, count, value)
                       for tag, count, value in tags)  # fmt: skip
    places = [start + 30 + sum(map(len, values[:n])) for n in range(3)]
    more = struct.pack("<3H6I", *[bits] * 3, *places, *map(len, values))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + more + b"".join(values)


def test_channels_one_after_another_are_read_right_or_refused():
    ramp = [np.arange(256), np.arange(255, -1, -1), np.full(256, 7)]
    small = planar_tiff([channel.astype(np.uint8).tobytes() for channel in ramp], 8)
    assert decode_pixels(small, 10**6)[0].T.tolist() == [channel.tolist() for channel in ramp]
    with pytest.raises(BadImageError, match="16-bit channels are stored one after another"):
        decode(planar_tiff([(257 * channel).astype("<u2").tobytes() for channel in ramp], 16), 10**6)


def test_color_jpeg_2000_of_more_than_8_bits_is_refused():
    color = encoded(np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (8, 1, 3)), "JPEG2000")
    check_ramp(color, step=2)
    at = color.index(b"\xff\x4f\xff\x51") + 42  # the depth of each channel, with two bytes between them
    deep = bytearray(color)
    deep[at : at + 9 : 3] = bytes([15]) * 3
    for action in (decode, lambda data, _: shrink(data, 4, 90), lambda data, _: image_size(data)):
        with pytest.raises(BadImageError, match="JPEG 2000 with 3 channels of 16 bits"):
            action(bytes(deep), 10**6)


def test_signed_values_of_8_bits_are_refused():
    with pytest.raises(BadImageError, match="its values are signed"):
        decode(encoded(np.arange(256, dtype=np.uint8)[None], tiffinfo={SAMPLE_FORMAT: 2}), 10**6)


def test_a_transparent_value_of_a_16_bit_image_becomes_white():
    values = np.array([[0, 30000, 65535]], dtype=np.uint16)
    assert decode_pixels(encoded(values, "PNG", transparency=0), 100)[0, :, 0].tolist() == [255, 117, 255]


def test_a_deep_image_looks_the_same_when_preparation_resizes_it():
    big = np.tile((RAMP * 65535).astype(np.uint16), (32, 1))
    small = decode_pixels(shrink(encoded(big, "PNG"), 128, 95), 10**6)
    assert np.abs(small[64, :, 0].astype(int) - np.linspace(0, 255, small.shape[1])).max() <= 3
