"""Opening text files: their encoding, and their lines."""

from __future__ import annotations

import codecs
import gzip
import zlib
from pathlib import Path
from typing import IO

from itr.errors import UserError

UNREADABLE = (ValueError, OSError, EOFError, zlib.error)  # what reading a text raises, which may be compressed


def table_kind(path: Path) -> str:
    """The suffix that names the format of a table, such as `.csv` for `a.CSV` and for `a.csv.gz`."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def open_text(path: Path, newline: str, errors: str = "strict") -> IO[str]:
    """A text file, which may be compressed by gzip.

    The encoding is UTF-16 if the file starts like it, as tables from Excel do; otherwise UTF-8.

    Args:
        path: the file.
        newline: which line ends to look for, as in `open`; none is translated.
        errors: what to do with bytes that are not text, as in `open`.
    """
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    with opened(path, "rb") as stream:
        encoding = encoding_of(stream.read(2))
    return opened(path, "rt", encoding=encoding, errors=errors, newline=newline)


def encoding_of(start: bytes) -> str:
    """The encoding of a text that begins with these two bytes: UTF-16 by its mark or by the zero in a letter."""
    if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    if len(start) < 2 or (start[0] == 0) == (start[1] == 0):
        return "utf-8-sig"
    return "utf-16-be" if start[0] == 0 else "utf-16-le"


def text_lines(path: Path) -> list[str]:
    """The lines of a text file, see `split_lines`.

    Raises:
        UserError: as `split_lines`, or the file could not be read.
    """
    try:
        return split_lines(path.read_bytes(), path)
    except OSError as error:
        raise UserError(f"could not read {path}: {error.strerror or error}") from None


def split_lines(raw: bytes, where: object) -> list[str]:
    """The lines of a text, without their ends; `where` is its file, for messages.

    Only a line feed ends a line, with a carriage return before it or not: captions may contain other characters that
    Python treats as line breaks, such as form feed, NEL and U+2028.

    Raises:
        UserError: it is neither UTF-8 nor UTF-16, or its lines end otherwise.
    """
    try:
        text = raw.decode(encoding_of(raw[:2]))
    except UnicodeDecodeError as error:
        number = raw[: error.start].count(b"\n") + 1
        raise UserError(
            f"{where}, line {number}, is not valid {error.encoding.upper()} ({error.reason}); convert the file to UTF-8"
        ) from None
    check_line_ends(text, where)
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines[:-1] if not lines[-1] else lines)]


def check_line_ends(text: str, where: object) -> None:
    """Refuse a text, or the first line of a file, whose lines end with a carriage return alone, as on old Macs.

    Raises:
        UserError: it is such a text.
    """
    if "\n" not in text and "\r" in text.rstrip("\r"):
        raise UserError(f"{where} has carriage returns but no line feeds, so its lines are not known; save it with LF")
