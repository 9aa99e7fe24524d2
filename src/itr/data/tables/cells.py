"""Cells of tables: captions, names of images and keys, whatever wrote the table.

A cell of captions holds one text, or several: as a list of JSON or Parquet, as a list that some program wrote out as
text (`itr.data.tables.written`), or as Karpathy's sentences, which have a field `raw`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from itr.data.tables.parquet import InnerImage
from itr.data.tables.written import WrittenError, read_written
from itr.errors import UserError, shown
from itr.images.kinds import type_of_bytes

RAW = "raw"  # of a sentence of Karpathy's files


def cell_texts(value: Any, where: str, column: str, blank: list[str] | None = None) -> list[str]:
    """The captions in a cell, with white space collapsed and without empty ones.

    Args:
        value: the cell.
        where: the file and row, for messages.
        column: name of the column, for messages.
        blank: gets `where` for each empty text among others.

    Raises:
        UserError: the cell holds something else than text, or a list that is written out incorrectly.
    """
    if isinstance(value, str):
        value = _listed(value, where, column)
    if isinstance(value, Mapping) and RAW in value:
        value = value[RAW]
    several = isinstance(value, (list, tuple))
    texts = [_text(item, where, column) for item in (value if several else [value]) if not is_missing(item)]
    if blank is not None and several:
        blank += [where for text in texts if not text]
    return [text for text in texts if text]


def cell_key(value: Any, where: str, column: str) -> str:
    """The name of an image or an id in a cell, without white space at its ends; empty if there is none.

    Raises:
        UserError: the cell holds something else.
    """
    if is_missing(value):
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float) and value.is_integer():  # as pandas has whole numbers in a column with empty cells
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{where}: the column {column} holds {kind_of(value)} instead of a name: {shown(value)}")


def is_missing(value: object) -> bool:
    """Whether a cell is empty: None, or the NaN that pandas writes instead."""
    return value is None or (isinstance(value, float) and value != value)


def kind_of(value: object) -> str:
    """What a value is, in words."""
    if isinstance(value, InnerImage):
        return "an image" if type_of_bytes(value.head) else "bytes"
    kinds = {dict: "an object", list: "a list", tuple: "a list", bytes: "bytes", str: "a text", bool: "true or false"}
    return kinds.get(type(value), "a number" if isinstance(value, (int, float)) else f"a {type(value).__name__}")


def _text(item: Any, where: str, column: str) -> str:
    if isinstance(item, Mapping) and isinstance(item.get(RAW), str):
        item = item[RAW]
    if not isinstance(item, str):
        what = "" if isinstance(item, InnerImage) else f": {shown(item)}"
        raise UserError(f"{where}: the column {column} holds {kind_of(item)} instead of a text{what}")
    return " ".join(item.split())


def _listed(text: str, where: str, column: str) -> Any:
    try:
        return read_written(text)
    except WrittenError:
        raise UserError(
            f"{where}: the column {column} looks like a list of texts that was written out, but could not be read as "
            f"one: {shown(' '.join(text.split()))}; write the list as JSON, or remove its brackets"
        ) from None
