"""Tables of rows with named columns: JSONL, JSON, CSV, TSV and Parquet."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from itr.errors import UserError

TABLES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


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
