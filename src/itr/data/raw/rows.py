"""JSON rows as in ALBEF, BLIP and CUSA: `{image, caption, image_id}` or `{image_path, caption, image_id}`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from itr.data.raw.entries import ImageEntry
from itr.data.raw.files import find_file, has_visible_text, report_examples
from itr.data.raw.image_folders import ImageFolders
from itr.data.raw.layouts import RawLayout
from itr.data.tables.cells import cell_key, cell_texts
from itr.data.tables.reading import Row, read_rows
from itr.errors import UserError, shown

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
    entries: dict[str, ImageEntry] = {}
    blank: list[object] = []
    for row in read_rows(path):
        image, captions, number = _parse(row)
        kept = [caption for caption in captions if has_visible_text(caption)]
        blank += [row.where.rpartition(", ")[2]] * (number - len(kept))
        if kept:
            entry = entries.setdefault(image, ImageEntry(image))
            entry.captions += kept
            if "image_id" in row:
                entry.meta.setdefault("source_id", row["image_id"])
    report_examples(f"{path.name}: skipped empty captions", blank)
    for entry in entries.values():
        entry.image = images.find(entry.image)
    return list(entries.values())


def _parse(row: Row) -> tuple[str, list[str], int]:
    """The image of a row, its captions, and how many there are with the empty ones."""
    image = next(filter(None, (cell_key(row.get(name), row.where, name) for name in ROW_IMAGE_COLUMNS)), "")
    caption = row.get("caption")
    if not image or caption is None:
        raise UserError(
            f"{row.where}: needs a path `image` or `image_path`, and a string or list of strings `caption`; "
            f"it is {shown(row, 200)}"
        )
    return image, cell_texts(caption, row.where, "caption"), len(caption) if isinstance(caption, list) else 1
