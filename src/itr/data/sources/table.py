"""`itr prepare table`: rows with an image path and one or more captions, as JSONL, JSON, CSV, TSV or Parquet."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from itr.data.raw.entries import Entry, RawData
from itr.data.raw.tables import SPLIT_NAMES, find_tables, read_rows
from itr.data.sources.base import Source
from itr.errors import UserError

IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_path", "filename", "file_name", "file", "path", "img")
CAPTION_COLUMNS = ("captions", "caption", "text", "texts", "sentences", "description", "title")


@dataclass
class Table(Source):
    """Turn tables of image paths and captions into shards.

    Args:
        root: a table, or a folder with `train`, `val` and `test` tables, or with one table. One table is split by its
            column `split` where it has one; otherwise images are drawn for `val` and `test`.
        image_root: folder that the image paths start from; by default that of the table.
        image_column: column of the image path; by default one of image, image_path, filepath, filename, file, path.
        caption_column: column of the caption or captions; by default one of captions, caption, text, sentences, title.
        holdout: share of the images drawn for `val`, and again for `test`, where the table does not say.
        seed: of the draw.
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
            raise UserError(f"holdout is {self.holdout}; it must be from 0 to below 0.5")
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


def read_entries(path: Path, columns: tuple[str | None, str | None]) -> list[Entry]:
    """The images of a table with their captions; rows of one image are joined."""
    return list(_join(read_rows(path), path, columns).values())


def split_entries(
    path: Path, columns: tuple[str | None, str | None], holdout: float, seed: int
) -> tuple[dict[str, list[Entry]], bool]:
    """Split one table by its `split` column, or by drawing images; whether they were drawn."""
    rows = list(read_rows(path))
    if rows and "split" in rows[0]:
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            name = str(row.get("split")).strip().lower()
            if name not in SPLIT_NAMES:
                raise UserError(f"{path} has the split {row.get('split')!r}; known are {', '.join(SPLIT_NAMES)}")
            groups.setdefault(SPLIT_NAMES[name], []).append(row)
        return {name: list(_join(group, path, columns).values()) for name, group in groups.items()}, False
    entries = list(_join(rows, path, columns).values())
    order = np.random.default_rng(seed).permutation(len(entries))
    held = round(holdout * len(entries))
    parts = {"val": order[:held], "test": order[held : 2 * held], "train": order[2 * held :]}
    print(f"{path.name} names no splits: {held} images each are drawn for val and test (--holdout {holdout})")
    return {name: [entries[i] for i in sorted(part)] for name, part in parts.items()}, True


def _join(rows: Any, path: Path, columns: tuple[str | None, str | None]) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    without = 0
    names: tuple[str, str] | None = None
    for row in rows:
        names = names or _columns(row, path, columns)
        image, captions = str(row.get(names[0]) or "").strip(), _texts(row.get(names[1]))
        if not image or not captions:
            without += 1
            continue
        entry = entries.setdefault(image, Entry(image))
        entry.captions += captions
        entry.dense += _texts(row.get("dense"))
    if without:
        print(f"{path.name}: {without} rows without an image or a caption are left out")
    return entries


def _columns(row: dict[str, Any], path: Path, wanted: tuple[str | None, str | None]) -> tuple[str, str]:
    found = []
    for title, name, known in zip(("image", "caption"), wanted, (IMAGE_COLUMNS, CAPTION_COLUMNS), strict=True):
        column = name or next((column for column in known if column in row), None)
        if column is None or column not in row:
            raise UserError(
                f"{path} has no {title} column {name or 'that I know'}; it has {', '.join(map(str, row))}; "
                f"name it by --{title}_column"
            )
        found.append(column)
    return found[0], found[1]


def _texts(value: Any) -> list[str]:
    """Captions of a cell: a text, a list of texts, or such a list written as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError):  # it may be a caption that begins with a bracket
            value = json.loads(value)
    texts = value if isinstance(value, (list, tuple)) else [value]
    return [" ".join(str(text).split()) for text in texts if isinstance(text, str) and text.strip()]
