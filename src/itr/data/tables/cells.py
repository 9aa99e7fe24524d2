"""Cells of tables: captions, names of images and keys, whatever wrote the table.

A cell of captions holds one text, or several: as a list of JSON or Parquet, as a list written out as text by JSON, by
Python and pandas (`['a', "it's b"]`) or by NumPy (`['a' 'b']`), or as Karpathy's sentences, which have a field `raw`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from itr.data.tables.parquet import InnerImage
from itr.errors import UserError, shown

STRING = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
MISSING = r"(?:None|nan|null|NaN)"
WRITTEN_LIST = re.compile(
    rf"\[\s*(?:{STRING}|{MISSING})(?:(?:\s*,\s*|\s+)(?:{STRING}|{MISSING}))*\s*,?\s*\]", re.DOTALL
)
WRITTEN_TUPLE = re.compile(rf"\(\s*{STRING}(?:\s*,\s*{STRING})*\s*,?\s*\)", re.DOTALL)
LOOKS_WRITTEN = re.compile(r"""\[\s*['"{].*['"}]\s*\]""", re.DOTALL)
RAW = "raw"  # of a sentence of Karpathy's files


def cell_texts(value: Any, where: str, column: str) -> list[str]:
    """The captions in a cell, with white space collapsed and without empty ones.

    Args:
        value: the cell.
        where: the file and row, for messages.
        column: name of the column, for messages.

    Raises:
        UserError: the cell holds something else than text, or a list that is written out incorrectly.
    """
    if isinstance(value, str):
        value = _listed(value, where, column)
    if isinstance(value, Mapping) and RAW in value:
        value = value[RAW]
    items = value if isinstance(value, (list, tuple)) else [value]
    texts = [_text(item, where, column) for item in items if not is_missing(item)]
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
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{where}: the column {column} holds {kind_of(value)} instead of a name: {shown(value)}")


def is_missing(value: object) -> bool:
    """Whether a cell is empty: None, or the NaN that pandas writes instead."""
    return value is None or (isinstance(value, float) and value != value)


def kind_of(value: object) -> str:
    """What a value is, in words."""
    if isinstance(value, InnerImage):
        return "an image"
    kinds = {dict: "an object", list: "a list", tuple: "a list", bytes: "bytes", str: "a text", bool: "true or false"}
    return kinds.get(type(value), "a number" if isinstance(value, (int, float)) else f"a {type(value).__name__}")


def _text(item: Any, where: str, column: str) -> str:
    if isinstance(item, Mapping) and isinstance(item.get(RAW), str):
        item = item[RAW]
    if not isinstance(item, str):
        raise UserError(f"{where}: the column {column} holds {kind_of(item)} instead of a text: {shown(item)}")
    return " ".join(item.split())


def _listed(text: str, where: str, column: str) -> Any:
    """The list that a text writes out; or the text, if it is an ordinary one, which may also begin with a bracket."""
    stripped = " ".join(text.split())
    if stripped[:1] + stripped[-1:] not in ("[]", "()"):
        return text
    try:
        found = json.loads(stripped)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, list) and not (found and all(isinstance(item, (int, float)) for item in found)):
        return found  # a caption may be a number in brackets
    if WRITTEN_LIST.fullmatch(stripped) or (WRITTEN_TUPLE.fullmatch(stripped) and "," in stripped):
        return _literals(stripped, where, column)
    if LOOKS_WRITTEN.fullmatch(stripped):
        raise UserError(
            f"{where}: the column {column} begins and ends like a list of texts, but could not be read as one: "
            f"{shown(stripped)}; write the list as JSON, or remove its brackets"
        )
    return text


def _literals(written: str, where: str, column: str) -> list[str]:
    """The strings of a list that Python or NumPy wrote."""
    try:
        return [str(ast.literal_eval(literal)) for literal in re.findall(STRING, written, re.DOTALL)]
    except (ValueError, SyntaxError) as error:
        raise UserError(f"{where}: could not read the list in the column {column}: {error}: {shown(written)}") from None
