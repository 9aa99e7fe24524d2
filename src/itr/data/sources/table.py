"""`itr prepare table`: rows with an image path and one or more captions, as JSONL, JSON, CSV, TSV or Parquet."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from itr.data.raw.entries import ImageEntry, RawData
from itr.data.raw.tables import SPLIT_ALIASES, find_tables, read_rows
from itr.data.sources.base import Source
from itr.errors import UserError

TABLE_TABLE_IMAGE_COLUMNS = (
    "image",
    "image_path",
    "filepath",
    "file_path",
    "filename",
    "file_name",
    "file",
    "path",
    "img",
)
TABLE_TABLE_CAPTION_COLUMNS = ("captions", "caption", "text", "texts", "sentences", "description", "title")


@dataclass
class Table(Source):
    """Turn tables of image paths and captions into shards.

    Args:
        root: a table, or a folder with one table or with tables named `train`, `val` and `test`. A single table is
            split by its column `split` if it has one; otherwise, images are drawn at random for `val` and `test`.
        image_root: folder that the image paths are relative to; by default, the folder of the table.
        image_column: column of the image path; by default one of image, image_path, filepath, filename, file, path.
        caption_column: column of the caption or captions; by default one of captions, caption, text, sentences, title.
        holdout: fraction of the images to draw for `val`, and again for `test`, if the table defines no splits.
        seed: random seed of the draw.

    Raises:
        UserError: a table is missing or malformed, or has no column of images or captions.
    """

    root: str
    image_root: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    holdout: float = 0.1
    seed: int = 0

    def read(self) -> RawData:
        """The images of each split with their captions."""
        if not 0 <= self.holdout < 0.5:
            raise UserError(f"holdout={self.holdout} must be at least 0 and less than 0.5")
        tables = find_tables(Path(self.root).expanduser())
        columns = (self.image_column, self.caption_column)
        entries = {split: read_entries(path, columns) for split, path in tables.items() if split}
        settings = {}
        if None in tables:
            entries, drawn = split_entries(tables[None], columns, self.holdout, self.seed)
            settings = {"holdout": self.holdout} if drawn else {}
        entries = {split: entries[split] for split in ("train", "val", "test") if split in entries}
        folder = next(iter(tables.values())).parent
        return RawData(Path(self.image_root).expanduser() if self.image_root else folder, entries, "table", settings)


def read_entries(path: Path, columns: tuple[str | None, str | None]) -> list[ImageEntry]:
    """The images of a table with their captions; rows of the same image are merged."""
    return list(_merge_rows(read_rows(path), path, columns).values())


def split_entries(
    path: Path, columns: tuple[str | None, str | None], holdout: float, seed: int
) -> tuple[dict[str, list[ImageEntry]], bool]:
    """Split a table by its column `split`, or else at random; also returns whether the split is random."""
    rows = list(read_rows(path))
    if rows and "split" in rows[0]:
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            name = str(row.get("split")).strip().lower()
            if name not in SPLIT_ALIASES:
                raise UserError(
                    f"{path} has the unknown split {row.get('split')!r}; use one of {', '.join(SPLIT_ALIASES)}"
                )
            groups.setdefault(SPLIT_ALIASES[name], []).append(row)
        return {name: list(_merge_rows(group, path, columns).values()) for name, group in groups.items()}, False
    entries = list(_merge_rows(rows, path, columns).values())
    order = np.random.default_rng(seed).permutation(len(entries))
    held = round(holdout * len(entries))
    parts = {"val": order[:held], "test": order[held : 2 * held], "train": order[2 * held :]}
    print(f"{path.name} defines no splits: drew {held} images each for val and test (--holdout {holdout})")
    return {name: [entries[i] for i in sorted(part)] for name, part in parts.items()}, True


def _merge_rows(rows: Any, path: Path, columns: tuple[str | None, str | None]) -> dict[str, ImageEntry]:
    entries: dict[str, ImageEntry] = {}
    num_incomplete = 0
    names: tuple[str, str] | None = None
    for row in rows:
        names = names or _find_columns(row, path, columns)
        image, captions = str(row.get(names[0]) or "").strip(), _texts(row.get(names[1]))
        if not image or not captions:
            num_incomplete += 1
            continue
        entry = entries.setdefault(image, ImageEntry(image))
        entry.captions += captions
        entry.dense += _texts(row.get("dense"))
    if num_incomplete:
        print(f"{path.name}: skipped {num_incomplete} rows num_incomplete an image or a caption")
    return entries


def _find_columns(row: dict[str, Any], path: Path, columns: tuple[str | None, str | None]) -> tuple[str, str]:
    found = []
    for title, name, known in zip(
        ("image", "caption"), columns, (TABLE_TABLE_IMAGE_COLUMNS, TABLE_TABLE_CAPTION_COLUMNS), strict=True
    ):
        column = name or next((column for column in known if column in row), None)
        if column is None or column not in row:
            raise UserError(
                f"{path} has no {title} column{f' {name!r}' if name else ''}; "
                f"choose one of {', '.join(map(str, row))} with --{title}_column"
            )
        found.append(column)
    return found[0], found[1]


def _texts(value: Any) -> list[str]:
    """Captions in a cell: a string, a list of strings, or such a list as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError):  # it may be a caption that starts with a bracket
            value = json.loads(value)
    texts = value if isinstance(value, (list, tuple)) else [value]
    return [" ".join(str(text).split()) for text in texts if isinstance(text, str) and text.strip()]
