"""`itr prepare table`: rows with an image path and one or more captions, as JSONL, JSON, CSV, TSV or Parquet."""

from __future__ import annotations

import codecs
import contextlib
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from itr.data.preparing.entries import Entry, RawData
from itr.errors import UserError

TABLES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_path", "filename", "file_name", "file", "path", "img")
CAPTION_COLUMNS = ("captions", "caption", "text", "texts", "sentences", "description", "title")


def read_table(
    root: str,
    image_root: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    holdout: float = 0.1,
    seed: int = 0,
) -> RawData:
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
    if not 0 <= holdout < 0.5:
        raise UserError(f"holdout is {holdout}; it must be from 0 to below 0.5")
    tables = find_tables(Path(root).expanduser())
    columns = (image_column, caption_column)
    entries = {split: read_entries(path, columns) for split, path in tables.items() if split}
    settings = {}
    if None in tables:
        entries, drawn = split_entries(tables[None], columns, holdout, seed)
        settings = {"holdout": holdout} if drawn else {}
    entries = {split: entries[split] for split in ("train", "val", "test") if split in entries}
    folder = next(iter(tables.values())).parent
    return RawData("table", Path(image_root).expanduser() if image_root else folder, entries, settings)


def find_tables(root: Path) -> dict[str | None, Path]:
    """The table of each split; the only table has the key None."""
    if root.is_file():
        return {None: root}
    if not root.is_dir():
        raise UserError(f"there is no table or folder {root}")
    tables = sorted(path for path in root.iterdir() if path.suffix.lower() in TABLES)
    named: dict[str | None, Path] = {}
    for path in tables:
        split = SPLIT_NAMES.get(path.stem.lower())
        if split and split in named:
            raise UserError(f"{named[split]} and {path} both look like the table of split {split!r}; keep one")
        if split:
            named[split] = path
    if named:
        return named
    if len(tables) == 1:
        return {None: tables[0]}
    found = ", ".join(path.name for path in tables) or "none"
    raise UserError(
        f"{root} needs one table, or tables named train, val and test ({', '.join(TABLES)}); it holds: {found}"
    )


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table of any of the types."""
    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            yield from _read_parquet(path)
        elif kind in (".csv", ".tsv"):
            # Bytes that are no text become lone surrogates, which the cleaning of captions replaces and tells.
            with path.open(encoding=_encoding(path), errors="surrogateescape", newline="") as stream:
                yield from csv.DictReader(stream, delimiter="\t" if kind == ".tsv" else ",")
        elif kind == ".json":
            yield from _rows_of(json.loads(path.read_text(encoding="utf-8-sig")), path)
        else:
            with path.open(encoding="utf-8-sig") as stream:
                for number, line in enumerate(stream, 1):
                    if line.strip():
                        yield _json_row(line, path, number)
    except (ValueError, csv.Error, OSError, RecursionError) as error:
        raise error if isinstance(error, UserError) else UserError(f"{path} can't be read: {error}") from None


def _encoding(path: Path) -> str:
    """UTF-16 where the file begins with its mark, as tables from Excel do; otherwise UTF-8."""
    with path.open("rb") as stream:
        return "utf-16" if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _rows_of(value: Any, path: Path) -> list[dict[str, Any]]:
    odd = [row for row in value if not isinstance(row, dict)] if isinstance(value, list) else [value]
    if odd:
        raise UserError(f"{path} is no list of rows with names: {str(odd[0])[:80]}")
    return list(value)


def _json_row(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {number}, is no JSON: {error}") from None
    if not isinstance(row, dict):
        raise UserError(f"{path}, line {number}, is no row with names: {line.strip()[:80]}")
    return row


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError("reading Parquet needs pyarrow: pip install 'itr[parquet]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except Exception as error:  # pyarrow has errors of its own, and raises others on damaged files
        raise UserError(f"{path} can't be read as Parquet: {error}") from None


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
