"""What a source finds before anything is written: images by path, with their captions, in splits."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itr.errors import UserError


@dataclass
class Entry:
    """One image of a source.

    Attributes:
        image: its path, relative to the source's image folder.
        captions: one or more captions.
        dense: dense captions, if there are any.
        meta: further fields for the JSON member of its sample, as plain types.
    """

    image: str
    captions: list[str] = field(default_factory=list)
    dense: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass
class RawData:
    """What `itr prepare` needs from a source.

    Attributes:
        image_root: folder that the entries' paths start from.
        entries: the images of each split, such as train, val and test, in a stable order.
        source: name for the manifest; if empty, the name by which the command line calls the source.
        settings: options of the source that change the result, for the manifest.
    """

    image_root: Path
    entries: dict[str, list[Entry]]
    source: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


def check_splits_are_apart(entries: dict[str, list[Entry]]) -> None:
    """Refuse an image that is in two splits, or twice in one; `./a.jpg` is `a.jpg`.

    Raises:
        UserError: with the first names and how many there are.
    """
    seen: dict[str, str] = {}
    problems = []
    for split, found in entries.items():
        for entry in found:
            other = seen.setdefault(os.path.normpath(entry.image), split)
            if other != split:
                problems.append(f"image {entry.image} is in {other} and in {split}; a split must not leak")
        problems += _twice(found, split)
    if problems:
        more = f" ({len(problems) - 3} more such images)" if len(problems) > 3 else ""
        raise UserError("\n".join(problems[:3]) + more)


def _twice(entries: list[Entry], split: str) -> list[str]:
    counts = Counter(os.path.normpath(entry.image) for entry in entries)
    return [f"image {name} appears {n} times in {split}; each must appear once" for name, n in counts.items() if n > 1]
