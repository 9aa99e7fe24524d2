"""What a reader of raw data returns: image paths with their captions, by split."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from itr.data.tables.parquet import InnerImage
from itr.errors import UserError


@dataclass
class ImageEntry:
    """One image of a source.

    Attributes:
        image: its path, relative to the image folder of the source.
        captions: one or more texts.
        dense: dense captions; may be empty.
        meta: extra fields for the JSON member of its sample, as plain types.
    """

    image: str
    captions: list[str] = field(default_factory=list)
    dense: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass
class RawData:
    """Everything `itr prepare` needs from a source.

    Attributes:
        image_root: folder that the image paths are relative to.
        entries: the images of each split, in a stable order.
        source: name for the manifest; if empty, the name of the source on the command line.
        settings: options of the source that affect the result, for the manifest.
        inner: for images inside Parquet files, where they are, by their name in `entries`.
    """

    image_root: Path
    entries: dict[str, list[ImageEntry]]
    source: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    inner: dict[str, InnerImage] = field(default_factory=dict)


def draw_splits(entries: list[ImageEntry], holdout: float, seed: int, what: str) -> dict[str, list[ImageEntry]]:
    """Draw images at random for val, and as many for test; the rest is train.

    Args:
        entries: the images.
        holdout: fraction of the images to draw for each of the two.
        seed: random seed of the draw.
        what: the file that defines no splits, for the notice.

    Raises:
        UserError: the fraction is not at least 0 and less than 0.5.
    """
    if not 0 <= holdout < 0.5:
        raise UserError(f"holdout={holdout} must be at least 0 and less than 0.5")
    order = np.random.default_rng(seed).permutation(len(entries))
    held = round(holdout * len(entries))
    parts = {"train": order[2 * held :], "val": order[:held], "test": order[held : 2 * held]}
    print(f"{what} defines no splits: drew {held} images each for val and test (--holdout {holdout})")
    return {name: [entries[i] for i in sorted(part)] for name, part in parts.items()}


def check_images_are_unique(entries: dict[str, list[ImageEntry]]) -> None:
    """Reject images that appear in two splits, or twice in one; `./a.jpg` is `a.jpg`.

    Raises:
        UserError: an image appears twice; the message lists the first names and the number of duplicates.
    """
    seen: dict[str, str] = {}
    problems = []
    for split, found in entries.items():
        for entry in found:
            other = seen.setdefault(os.path.normpath(entry.image), split)
            if other != split:
                problems.append(f"image {entry.image} is in both {other} and {split}; splits must not overlap")
        problems += _duplicates(found, split)
    if problems:
        more = f" ({len(problems) - 3} more such images)" if len(problems) > 3 else ""
        raise UserError("\n".join(problems[:3]) + more)


def _duplicates(entries: list[ImageEntry], split: str) -> list[str]:
    counts = Counter(os.path.normpath(entry.image) for entry in entries)
    return [f"image {name} appears {n} times in {split}; list it once" for name, n in counts.items() if n > 1]
