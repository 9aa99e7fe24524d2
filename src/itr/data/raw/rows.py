"""JSON rows as in ALBEF, BLIP and CUSA: `{image, caption, image_id}` or `{image_path, caption, image_id}`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from itr.data.raw.entries import ImageEntry
from itr.data.raw.files import collapse_whitespace, find_file, has_visible_text, read_json, report_examples
from itr.data.raw.image_folders import ImageFolders
from itr.data.raw.layouts import RawLayout
from itr.errors import UserError

ROW_IMAGE_COLUMNS = ("image", "image_path")


def rows_layout(root: Path, name: str, images: ImageFolders, splits: Sequence[str]) -> RawLayout:
    """The row layout of the data set `name` (flickr30k or coco); only `splits` are read."""
    return RawLayout(
        "JSON rows",
        ", ".join(row_files(name, "{train,val,test}")),
        lambda: find_row_files(root, name),
        lambda paths: {split: read_json_rows(path, images) for split, path in paths.items() if split in splits},
    )


def row_files(name: str, split: str) -> list[str]:
    """Possible file names for the rows of a split of the data set `name` (flickr30k or coco)."""
    return [f"{name}_{split}.json", f"{name}_karpathy_{split}.json", f"new_{split}.json", f"{split}.json"]


def find_row_files(root: Path, name: str) -> dict[str, Path]:
    """The file of each split that has one."""
    found = {split: find_file(root, row_files(name, split)) for split in ("train", "val", "test")}
    return {split: path for split, path in found.items() if path}


def read_json_rows(path: Path, images: ImageFolders) -> list[ImageEntry]:
    """The images of one file in order of first appearance; rows of the same image are merged.

    Raises:
        UserError: the file does not contain such rows.
    """
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} is not a list of rows with image and caption")
    entries: dict[str, ImageEntry] = {}
    blank: list[object] = []
    for number, row in enumerate(rows):
        image, captions = _parse(row, number, path)
        kept = [caption for caption in map(collapse_whitespace, captions) if has_visible_text(caption)]
        blank += [f"row {number}"] * (len(captions) - len(kept))
        if kept:
            entry = entries.setdefault(image, ImageEntry(image))
            entry.captions += kept
            if "image_id" in row:
                entry.meta.setdefault("source_id", row["image_id"])
    report_examples(f"{path.name}: skipped empty captions", blank)
    for entry in entries.values():
        entry.image = images.find(entry.image)
    return list(entries.values())


def _parse(row: dict[str, Any], number: int, path: Path) -> tuple[str, list[str]]:
    image: str = next((row[column] for column in ROW_IMAGE_COLUMNS if isinstance(row.get(column), str)), "")
    caption = row.get("caption")
    captions: list[Any] = caption if isinstance(caption, list) else [caption]
    if not image.strip() or not all(isinstance(text, str) for text in captions):
        raise UserError(
            f"{path}, row {number}, needs a path `image` or `image_path`, and a string or list of strings `caption`; "
            f"it has {', '.join(f'{key}: {str(value)[:40]!r}' for key, value in row.items())}"
        )
    return image, captions
