"""Opening text files: their encoding, and their lines."""

from __future__ import annotations

import codecs
import gzip
from pathlib import Path
from typing import IO

from itr.errors import UserError


def table_kind(path: Path) -> str:
    """The suffix that names the format of a table, such as `.csv` for `a.CSV` and for `a.csv.gz`."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def open_text(path: Path, newline: str, errors: str = "strict") -> IO[str]:
    """A text file, which may be compressed by gzip.

    The encoding is UTF-16 if the file starts with its byte order mark, as tables from Excel do; otherwise UTF-8.

    Args:
        path: the file.
        newline: which line ends to look for, as in `open`; none is translated.
        errors: what to do with bytes that are not text, as in `open`.
    """
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    with opened(path, "rb") as stream:
        mark = stream.read(2)
    encoding = "utf-16" if mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    return opened(path, "rt", encoding=encoding, errors=errors, newline=newline)


def text_lines(path: Path) -> list[str]:
    """The lines of a text file, see `split_lines`.

    Raises:
        UserError: the file could not be read, or is not UTF-8.
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
        UserError: it is not UTF-8.
    """
    try:
        lines = raw.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        number = raw[: error.start].count(b"\n") + 1
        raise UserError(
            f"{where}, line {number}, is not valid UTF-8 ({error.reason}); convert the file to UTF-8"
        ) from None
    return [line.removesuffix("\r") for line in (lines[:-1] if not lines[-1] else lines)]
