"""The types of image files that are read. This module imports no decoder, so that every reader can ask it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec

# Types by extension. HEIF_TYPES need pillow-heif, the extra `images`; the rest are read by simplejpeg and Pillow.
HEIF_TYPES = ("heic", "heif", "hif")
IMAGE_TYPES = (
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "dib", "gif", "tif", "tiff", "avif",
    "jp2", "j2k", "jpx", "ppm", "pgm", "pbm", "pnm", *HEIF_TYPES,
)  # fmt: skip
STARTS = {
    b"\xff\xd8\xff": "jpg", b"\x89PNG\r\n\x1a\n": "png", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tif", b"MM\0*": "tif",
    b"\0\0\0\x0cjP  ": "jp2", b"\xff\x4f\xff\x51": "j2k", b"P4": "pbm", b"P5": "pgm", b"P6": "ppm",
}  # fmt: skip
BRANDS = {b"avif": "avif", b"avis": "avif"} | dict.fromkeys(
    (b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1"), "heic"
)
HEIF_HINT = "install pillow-heif: pip install 'itr[images]'"
MOST_KINDS = 12  # named in one message


@cache
def reads_heif() -> bool:
    """Whether pillow-heif is installed."""
    return find_spec("pillow_heif") is not None


def image_type(name: str) -> str:
    """The lower-case extension of a file name: `jpg` for `a/B.JPG`."""
    return os.path.splitext(name)[1].lower().lstrip(".")


def type_of_bytes(head: bytes) -> str:
    """The type of an image that begins with these 12 or more bytes; empty if it is of no type that is read."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp":
        return BRANDS.get(head[8:12], "")
    return next((kind for start, kind in STARTS.items() if head.startswith(start)), "")


def is_image(name: str) -> bool:
    """Whether a file is an image that this installation reads, by its extension."""
    kind = image_type(name)
    return kind in IMAGE_TYPES and (kind not in HEIF_TYPES or reads_heif())


def describe_kinds(names: Iterable[str]) -> str:
    """Counts of files by type, such as `3 .heic, 1 .txt`, and what reads HEIC files if there are any."""
    kinds = Counter(image_type(name) for name in names)
    listed = [f"{count:,} {f'.{kind}' if kind else 'without extension'}" for kind, count in kinds.most_common()]
    more = f" and {len(listed) - MOST_KINDS} more types" if len(listed) > MOST_KINDS else ""
    heif = any(kinds[kind] for kind in HEIF_TYPES) and not reads_heif()
    hint = f"; to read HEIC files, {HEIF_HINT}" if heif else ""
    return f"{', '.join(listed[:MOST_KINDS])}{more}{hint}"
