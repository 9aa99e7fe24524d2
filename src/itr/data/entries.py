"""What a source of raw data finds before anything is written: pictures by path, with their captions, in splits."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itr.errors import UserError


@dataclass
class Entry:
    """One image of a source.

    Attributes:
        image: its path, relative to the source's folder of images.
        captions: one or more texts.
        dense: dense captions, none where there are none.
        meta: further fields for the JSON member of its sample, as plain types.
    """

    image: str
    captions: list[str] = field(default_factory=list)
    dense: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass
class RawData:
    """All that `itr prepare` needs of a source.

    Attributes:
        source: its name, for the manifest.
        image_root: folder that the entries' paths start from.
        entries: the images of each split, in a stable order.
        settings: what of the source's options the result depends on, for the manifest.
    """

    source: str
    image_root: Path
    entries: dict[str, list[Entry]]
    settings: dict[str, Any] = field(default_factory=dict)


def check_splits_are_apart(entries: dict[str, list[Entry]]) -> None:
    """Refuse an image that stands in two splits."""
    seen: dict[str, str] = {}
    for split, found in entries.items():
        for entry in found:
            other = seen.setdefault(entry.image, split)
            if other != split:
                raise UserError(f"image {entry.image} stands in {other} and in {split}; a split must not leak")
