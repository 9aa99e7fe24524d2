"""Looking at the files of images before anything is written, so that all faults are told at once.

Of each file a few bytes are read, by many threads, since most of the time goes into waiting for a disk.

A path is judged as the source writes it: it may not be absolute (unless it lies below the folder of images) nor hold
`..`. Links inside that folder were laid by its owner and are followed, wherever they lead.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from itr.data.shards.schema import IMAGE_TYPES
from itr.images.decode import FORMATS, JPEG

THREADS = 16
BLOCK = 256
BEGINNINGS = (JPEG, b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*")
WEB_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")


def look_at_files(root: Path, names: Sequence[str]) -> Iterator[list[tuple[str, str]]]:
    """Look at files in blocks: for each name, in order, what `look_at_file` tells."""

    def look(start: int) -> list[tuple[str, str]]:
        return [look_at_file(str(root), name) for name in names[start : start + BLOCK]]

    with ThreadPoolExecutor(THREADS) as threads:
        yield from threads.map(look, range(0, len(names), BLOCK))


def look_at_file(root: str, name: str) -> tuple[str, str]:
    """Size and time of change as one text, and what is wrong with the file (empty where nothing seems to be)."""
    problem = _problem_of_name(root, name)
    if problem:
        return "", problem
    path = os.path.join(root, name)
    try:
        status = os.stat(path)
        if stat.S_ISFIFO(status.st_mode) or stat.S_ISCHR(status.st_mode):  # which may not answer, or never end
            return "", "is no file, but a pipe or a device"
        with open(path, "rb", buffering=0) as stream:
            beginning = stream.read(32)
    except FileNotFoundError:
        return "", "is not there"
    except (OSError, ValueError) as error:
        return "", f"can't be read ({getattr(error, 'strerror', None) or error})"
    return f"{status.st_size} {status.st_mtime_ns}", _problem_of_content(path, beginning)


def _problem_of_name(root: str, name: str) -> str:
    if ".." in name and ".." in Path(name).parts:
        return "leads out of the image folder"
    if os.path.isabs(name) and not Path(name).is_relative_to(root):
        return "leads out of the image folder"
    if extension_of(name) not in IMAGE_TYPES:
        return f"is not one of {', '.join(IMAGE_TYPES)}"
    return ""


def _problem_of_content(path: str, beginning: bytes) -> str:
    if beginning.startswith(BEGINNINGS) or (beginning[:4] == b"RIFF" and beginning[8:12] == b"WEBP"):
        return ""
    if not beginning:
        return "is empty"
    if beginning.lstrip().lower().startswith(WEB_PAGES):
        return "is no image (but a web page)"
    try:
        with Image.open(path, formats=FORMATS):  # Pillow knows more kinds, under whatever name
            return ""
    except Exception:
        return f"is no image (it begins with {bytes(beginning[:12])!r})"


def extension_of(name: str) -> str:
    """The type of an image by its name: `a/B.JPG` is a `jpg`."""
    return os.path.splitext(name)[1].lower().lstrip(".")


def listed(problems: Sequence[tuple[str, str]], total: int, split: str, root: Path) -> str:
    """The first problems by name, and how many there are."""
    lines = "".join(f"\n  {image}: {problem}" for image, problem in problems[:5])
    more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
    return f"{len(problems)} of {total} images of {split} can't be used (from {root}):{lines}{more}"
