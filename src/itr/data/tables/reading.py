"""Rows of tables: JSONL, JSON, CSV, TSV and Parquet. Every part of `itr` that reads a table reads it here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from itr.data.tables.delimited import read_delimited
from itr.data.tables.parquet import read_parquet
from itr.data.tables.text_files import UNREADABLE, open_text, table_kind
from itr.errors import UserError, shown

TABLE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


class Row(dict[str, Any]):
    """The cells of a row by the names of their columns.

    Attributes:
        where: its file and line (or its number from 1, in JSON and Parquet), for messages.
    """

    def __init__(self, cells: dict[str, Any], where: str) -> None:
        super().__init__(cells)
        self.where = where


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a table of any supported type; text that is not JSON is read as CSV.

    Raises:
        UserError: the file could not be read, or a row is malformed; the message names its line.
    """
    kind = table_kind(path)
    try:
        if kind == ".parquet":
            yield from (Row(cells, f"{path}, row {number}") for number, cells in enumerate(read_parquet(path), 1))
        elif kind == ".json":
            yield from _read_json(path)
        elif kind == ".jsonl":
            for number, value in read_json_lines(path):
                yield _json_row(value, f"{path}, line {number}")
        else:
            yield from (Row(cells, f"{path}, line {number}") for number, cells in read_delimited(path))
    except (*UNREADABLE, RecursionError) as error:
        raise error if isinstance(error, UserError) else UserError(f"could not read {path}: {error}") from None


def read_json_lines(path: Path, blank: bool = False) -> Iterator[tuple[int, Any]]:
    """The value in each line of a JSONL file, with the number of the line.

    Args:
        path: the file.
        blank: also return blank lines, as None.

    Raises:
        UserError: a line is not valid JSON.
    """
    with open_text(path, newline="\n") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield number, parse_json(line, f"{path}, line {number},")
            elif blank:
                yield number, None


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text.

    Raises:
        UserError: it is not valid, or an object has the same key twice, of which one would be lost.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON: {error}") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"an object has the key {shown(next(key for key in found if keys.count(key) > 1))} twice")
    return found


def _read_json(path: Path) -> Iterator[Row]:
    with open_text(path, newline="") as stream:
        text = stream.read()
    first, _, rest = text.strip().partition("\n")
    if first.startswith("{") and first.rstrip().endswith("}") and rest:  # one object a line, as pandas can write
        for number, value in read_json_lines(path):
            yield _json_row(value, f"{path}, line {number}")
        return
    value = parse_json(text, str(path))
    if not isinstance(value, list):
        raise UserError(f"{path} is not a list of objects: {shown(value)}")
    yield from (_json_row(item, f"{path}, row {number}") for number, item in enumerate(value, 1))


def _json_row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{where}, is not a JSON object: {shown(value)}")
    return Row(value, where)
