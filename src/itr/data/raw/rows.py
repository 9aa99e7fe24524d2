"""JSON rows as ALBEF, BLIP and CUSA keep them: `{image, caption, image_id}` or `{image_path, caption, image_id}`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from itr.data.raw.entries import Entry
from itr.data.raw.files import find_file, read_json, says_something, squeeze, tell
from itr.data.raw.image_folders import ImageFolders
from itr.data.raw.layouts import Layout
from itr.errors import UserError

IMAGE_COLUMNS = ("image", "image_path")


def rows_layout(root: Path, name: str, images: ImageFolders, splits: Sequence[str]) -> Layout:
    """The layout of the set `name` (flickr30k or coco), of which `splits` are read."""
    return Layout(
        "JSON rows",
        ", ".join(row_files(name, "{train,val,test}")),
        lambda: find_rows(root, name),
        lambda paths: {split: read_json_rows(path, images) for split, path in paths.items() if split in splits},
    )


def row_files(name: str, split: str) -> list[str]:
    """The file names that the rows of a split go by, for the set `name` (flickr30k or coco)."""
    return [f"{name}_{split}.json", f"{name}_karpathy_{split}.json", f"new_{split}.json", f"{split}.json"]


def find_rows(root: Path, name: str) -> dict[str, Path]:
    """The file of each split, where there is one."""
    found = {split: find_file(root, row_files(name, split)) for split in ("train", "val", "test")}
    return {split: path for split, path in found.items() if path}


def read_json_rows(path: Path, images: ImageFolders) -> list[Entry]:
    """The images of one file in the order in which they first appear; the rows of an image are joined.

    Raises:
        UserError: the file holds no rows of this kind.
    """
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} is no list of rows with image and caption")
    entries: dict[str, Entry] = {}
    blank: list[object] = []
    for number, row in enumerate(rows):
        image, captions = _parse(row, number, path)
        spoken = [caption for caption in map(squeeze, captions) if says_something(caption)]
        blank += [f"row {number}"] * (len(captions) - len(spoken))
        if spoken:
            entry = entries.setdefault(image, Entry(image))
            entry.captions += spoken
            if "image_id" in row:
                entry.meta.setdefault("source_id", row["image_id"])
    tell(f"{path.name}: empty captions left out", blank)
    for entry in entries.values():
        entry.image = images.find(entry.image)
    return list(entries.values())


def _parse(row: dict[str, Any], number: int, path: Path) -> tuple[str, list[str]]:
    image: str = next((row[column] for column in IMAGE_COLUMNS if isinstance(row.get(column), str)), "")
    caption = row.get("caption")
    captions: list[Any] = caption if isinstance(caption, list) else [caption]
    if not image.strip() or not all(isinstance(text, str) for text in captions):
        raise UserError(
            f"{path}, row {number}: it needs a path `image` or `image_path`, and `caption`, a text or a list of texts; "
            f"it has {', '.join(f'{key}: {str(value)[:40]!r}' for key, value in row.items())}"
        )
    return image, captions
