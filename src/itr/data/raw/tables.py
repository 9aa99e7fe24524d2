"""Tables with named columns: JSONL, JSON, CSV, TSV and Parquet."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from itr.errors import UserError

TABLE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


SPLIT_ALIASES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def find_tables(root: Path) -> dict[str | None, Path]:
    """The table of each split; a single table for all splits has the key None."""
    if root.is_file():
        return {None: root}
    if not root.is_dir():
        raise UserError(f"{root} does not exist; pass a table or a folder with tables as --root")
    tables = sorted(path for path in root.iterdir() if path.suffix.lower() in TABLE_SUFFIXES)
    named: dict[str | None, Path] = {}
    for path in tables:
        split = SPLIT_ALIASES.get(path.stem.lower())
        if split and split in named:
            raise UserError(f"both {named[split]} and {path} could be the table of split {split!r}; keep one")
        if split:
            named[split] = path
    if named:
        return named
    if len(tables) == 1:
        return {None: tables[0]}
    found = ", ".join(path.name for path in tables) or "no table"
    raise UserError(
        f"{root} must contain one table, or tables named train, val and test ({', '.join(TABLE_SUFFIXES)}); "
        f"it has {found}"
    )


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table of any supported type.

    Raises:
        UserError: the file could not be read.
    """
    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            yield from _read_parquet(path)
        elif kind in (".csv", ".tsv"):
            # Undecodable bytes become lone surrogates, which the caption cleaner replaces and reports.
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
        raise error if isinstance(error, UserError) else UserError(f"could not read {path}: {error}") from None


def _encoding(path: Path) -> str:
    """UTF-16 if the file starts with its byte order mark, as tables from Excel do; otherwise UTF-8."""
    with path.open("rb") as stream:
        return "utf-16" if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _rows_of(value: Any, path: Path) -> list[dict[str, Any]]:
    odd = [row for row in value if not isinstance(row, dict)] if isinstance(value, list) else [value]
    if odd:
        raise UserError(f"{path} is not a list of objects: {str(odd[0])[:80]}")
    return list(value)


def _json_row(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {number}, is not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise UserError(f"{path}, line {number}, is not a JSON object: {line.strip()[:80]}")
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
    except Exception as error:  # pyarrow has its own errors, and raises others on damaged files
        raise UserError(f"could not read {path} as Parquet: {error}") from None
