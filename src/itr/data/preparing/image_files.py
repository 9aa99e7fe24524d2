"""Checks of image files before anything is written, so that all problems are reported at once.

Many threads read a few bytes of each file, since most of the time is spent waiting for the disk.

A path is checked as the source writes it: it must not be absolute (unless it is below the image folder) nor contain
`..`. Symbolic links inside the image folder are trusted and followed, wherever they lead.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from itr.data.tables.parquet import InnerImage
from itr.errors import bounded
from itr.images.decode import pillow_formats
from itr.images.kinds import HEIF_HINT, HEIF_TYPES, IMAGE_TYPES, image_type, reads_heif, type_of_bytes

READ_THREADS = 16
FILES_PER_BLOCK = 256
NEEDS_HEIF = f"is a HEIC file, which needs an extra package; {HEIF_HINT}"
HTML_MAGIC = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")


def check_image_files(root: Path, names: Sequence[str]) -> Iterator[list[tuple[str, str]]]:
    """Check files in blocks: the result of `check_image_file` for each name, in order."""

    def check(start: int) -> list[tuple[str, str]]:
        return [check_image_file(str(root), name) for name in names[start : start + FILES_PER_BLOCK]]

    with ThreadPoolExecutor(READ_THREADS) as threads:
        yield from threads.map(check, range(0, len(names), FILES_PER_BLOCK))


def check_image_file(root: str, name: str) -> tuple[str, str]:
    """Size and modification time as one string, and the problem with the file (empty if none was found)."""
    problem = _problem_of_name(root, name)
    if problem:
        return "", problem
    path = os.path.join(root, name)
    try:
        status = os.stat(path)
        if stat.S_ISFIFO(status.st_mode) or stat.S_ISCHR(status.st_mode):  # reading may block or never end
            return "", "is a pipe or a device, not a regular file"
        with open(path, "rb", buffering=0) as stream:
            head = stream.read(32)
    except FileNotFoundError:
        return "", "does not exist"
    except (OSError, ValueError) as error:
        return "", f"could not be read ({getattr(error, 'strerror', None) or error})"
    return f"{status.st_size} {status.st_mtime_ns}", _problem_of_content(path, head)


def check_inner_images(inner: Mapping[str, InnerImage], names: Sequence[str]) -> list[tuple[str, str]]:
    """As `check_image_file`, for images inside tables: the hash of their bytes instead of a time."""
    return [(inner[name].digest, problem_of_head(inner[name].head)) for name in names]


def _problem_of_name(root: str, name: str) -> str:
    if ".." in name and ".." in Path(name).parts:
        return "is outside the image folder"
    if os.path.isabs(name) and not Path(name).is_relative_to(root):
        return "is outside the image folder"
    kind = image_type(name)
    if kind in HEIF_TYPES and not reads_heif():
        return NEEDS_HEIF
    if kind not in IMAGE_TYPES:
        return f"does not have one of the extensions {', '.join(IMAGE_TYPES)}"
    return ""


def _problem_of_content(path: str, head: bytes) -> str:
    problem = problem_of_head(head)
    if not problem or not head:
        return problem
    try:
        with Image.open(path, formats=pillow_formats()):  # Pillow recognizes more formats, whatever the extension
            return ""
    except Exception:  # Pillow raises many types for files that are not images
        return problem


def problem_of_head(head: bytes) -> str:
    """What is wrong with an image that begins with these bytes; empty if it may be an image."""
    kind = type_of_bytes(head)
    if kind in HEIF_TYPES and not reads_heif():
        return NEEDS_HEIF
    if kind:
        return ""
    if not head:
        return "is empty"
    if head.lstrip().lower().startswith(HTML_MAGIC):
        return "is a web page, not an image"
    return f"is not an image (it starts with {bytes(head[:12])!r})"


def format_problems(problems: Sequence[tuple[str, str]], total: int, split: str, root: Path) -> str:
    """A message with the number of problems and the first five."""
    lines = "".join(f"\n  {_plain(image)}: {problem}" for image, problem in problems[:5])
    more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
    return f"{len(problems)} of {total} images of {split} cannot be used (image folder: {root}):{lines}{more}"


def _plain(name: str) -> str:
    return bounded(name if name.isprintable() else repr(name)[1:-1], 300)
