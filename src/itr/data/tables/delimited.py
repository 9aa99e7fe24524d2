"""Rows of CSV, TSV and similar text. A row that does not fit its header is refused with its line, never cut.

In CSV, a field that contains a comma or a line end, or begins with a quotation mark, must be quoted. If tabs
or `|` separate the fields, as in captions from the web, quotation marks are characters like any other unless the whole
field is quoted.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from itr.data.tables.text_files import check_line_ends, open_text, table_kind
from itr.errors import UserError, shown
from itr.images.kinds import IMAGE_TYPES

LONGEST_CELL = 16_000_000  # characters; a product's description may exceed the csv module's limit of 131,072
DELIMITERS = (",", "|", ";", "\t")
NAMES = {",": "commas", ";": "semicolons", "|": "`|`", "\t": "tabs"}
PLAIN = "\t|"  # delimiters of tables in which quotation marks are characters
SEPARATOR = "sep="  # Excel's line that names the delimiter
MOST_LINES_OF_A_FIELD = 1000  # of a table in which quotation marks are characters
IMAGE_ENDING = re.compile(rf"\.(?:{'|'.join(IMAGE_TYPES)})$")
KAGGLE_HEADER = ["image_name", "comment_number", "comment"]
Record = tuple[int, list[str]]  # number of its first line, fields


def read_delimited(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a table with the number of their first line; blank lines are skipped.

    Undecodable bytes become lone surrogates, which the caption cleaner replaces and reports.

    Raises:
        UserError: a row has another number of fields than the header, a quotation mark is never closed or closes after
            further rows, or two columns have the same name.
    """
    delimiter = find_delimiter(path)
    plain = delimiter in PLAIN
    with open_text(path, newline="\n" if plain else "", errors="surrogateescape") as stream:
        records = _plain_records(stream, delimiter, path) if plain else _csv_records(stream, delimiter, path)
        records = (record for record in records if any(field.strip() for field in record[1]))
        first = next(records, (0, []))[1]
        header = [name.strip() for name in (next(records, (0, []))[1] if first == [SEPARATOR, ""] else first)]
        _check_header(header, path)
        for number, fields in records:
            if len(fields) != len(header):
                fields = _repaired(fields, header, delimiter, path, number)
            yield number, dict(zip(header, fields, strict=True))


def find_delimiter(path: Path) -> str:
    """What separates the fields: tabs in `.tsv`; otherwise that of `,` `|` `;` and tab which the first line has most.

    Excel's line `sep=;` before the header says it too.
    """
    if table_kind(path) == ".tsv":
        return "\t"
    with open_text(path, newline="", errors="surrogateescape") as stream:
        first = next((line for line in stream if line.strip()), "")
    unquoted = re.sub(r'"[^"]*"', "", first)
    return max(DELIMITERS, key=unquoted.count)  # the first one if several are equally frequent


def _check_header(header: list[str], path: Path) -> None:
    twice = [name for name, count in Counter(header).items() if count > 1 and name]
    if twice:
        raise UserError(
            f"{path}: its header has the column {shown(twice[0])} {header.count(twice[0])} times; "
            "give each column a name of its own, such as caption_1 and caption_2"
        )


def _repaired(fields: list[str], header: list[str], delimiter: str, path: Path, number: int) -> list[str]:
    """The fields of the row that lacks a separator in the published `results.csv` of Flickr30K.

    Raises:
        UserError: it is any other row with the wrong number of fields.
    """
    if header == KAGGLE_HEADER and len(fields) == 2 and (found := re.fullmatch(r"\s*(\d+)\s+(\S.*)", fields[1])):
        print(f"{path.name}, line {number}: a separator is missing; read as comment {found[1]}: {shown(found[2])}")
        return [fields[0], found[1], found[2]]
    advice = (
        f"put quotation marks around a field that contains {NAMES[delimiter]}, as programs that write CSV do"
        if len(fields) > len(header)
        else "complete the row, or put quotation marks around a field that contains line ends"
    )
    raise UserError(
        f"{path}, line {number}: it has {len(fields)} fields separated by {NAMES[delimiter]}, but the header has "
        f"{len(header)}: {shown(fields, 200)}; {advice}"
    )


def _csv_records(stream: IO[str], delimiter: str, path: Path) -> Iterator[Record]:
    reader = csv.reader(stream, delimiter=delimiter, strict=True, skipinitialspace=True)
    while True:
        start = reader.line_num + 1
        try:
            with _longest_cell():
                fields = next(reader, None)
        except csv.Error as error:
            reason = "a quotation mark is never closed" if "unexpected end" in str(error) else str(error)
            lines = f", up to line {reader.line_num}" if reader.line_num > start else ""
            raise UserError(
                f"{path}, line {start}{lines}: {reason}; put quotation marks around the whole field, and write each "
                "one inside it twice"
            ) from None
        if fields is None:
            return
        if reader.line_num > start and (swallowed := _swallowed(fields, delimiter)):
            raise UserError(
                f"{path}, line {start}: a quotation mark opens a field that closes only in line {reader.line_num} and "
                f"contains further rows, such as {shown(swallowed)}; write a quotation mark inside a field twice, and "
                "put quotation marks around the whole field"
            )
        yield start, fields


@contextmanager
def _longest_cell() -> Iterator[None]:
    """Raise the limit of the csv module, which holds for the whole program, while a row is read."""
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _swallowed(fields: list[str], delimiter: str) -> str:
    """The first line inside a quoted field that looks like a row of its own; empty if none does.

    Such a line has as many fields, and one of them is written like the field of this row in the same column: an image
    name with the same extension, or an id of the same pattern of letters and digits.
    """
    for index, field in enumerate(fields):
        others = [number for number in range(len(fields)) if number != index]
        lines = field.replace("\r\n", "\n").split("\n")
        for place, line in enumerate(lines[1:], 1):
            after = fields[index + 1 :] if place == len(lines) - 1 else []
            candidate = line.split(delimiter) + after
            if len(candidate) >= len(fields) and any(_alike(candidate[i], fields[i]) for i in others):
                return line
    return ""


def _alike(first: str, second: str) -> bool:
    return bool(_patterns(first) & _patterns(second))


def _patterns(text: str) -> set[str]:
    text = text.strip().lower()
    ending = re.search(r"\.[a-z][a-z0-9]{1,4}$", re.sub(IMAGE_ENDING, ".image", text))
    shape = re.sub(r"\d+", "9", re.sub(r"[^\W\d_]+", "a", text))
    return {ending[0] if ending else "", shape if "9" in shape and " " not in shape else ""} - {""}


def _plain_records(stream: IO[str], delimiter: str, path: Path) -> Iterator[Record]:
    ahead: deque[str] = deque([next(stream, "")])
    check_line_ends(ahead[0], path)
    number = 0
    while (line := _next_line(stream, ahead)) is not None:
        number += 1
        start = number
        fields, rest = _plain_fields(line, delimiter)
        if rest and (more := _closing_lines(stream, ahead, fields, delimiter)):
            fields, _ = _plain_fields("\n".join([line, *more]), delimiter)
            if any(delimiter in inner for inner in (*more[:-1], more[-1].rpartition('"')[0])):
                raise UserError(
                    f"{path}, line {start}: a quotation mark opens a field that closes only in line "
                    f"{start + len(more)}, and its lines, such as {shown(more[0])}, may be rows; remove the line ends "
                    "from the field, or the quotation mark"
                )
            number += len(more)
        yield start, fields


def _next_line(stream: IO[str], ahead: deque[str]) -> str | None:
    line = ahead.popleft() if ahead else next(stream, None)
    return None if line is None else line.removesuffix("\n").removesuffix("\r")


def _plain_fields(line: str, delimiter: str) -> tuple[list[str], bool]:
    """The fields of a line; also whether its last field starts with a quotation mark that does not close it."""
    fields, at, is_open = [], 0, False
    quoted = re.compile(rf'"((?:[^"]|"")*)"(?={re.escape(delimiter)}|\Z)')
    while True:
        found = quoted.match(line, at) if line.startswith('"', at) else None
        stop = found.end() if found else line.find(delimiter, at)
        stop = len(line) if stop < 0 else stop
        fields.append(found[1].replace('""', '"') if found else line[at:stop])
        if stop == len(line):
            is_open = found is None and line.startswith('"', at)
            return fields, is_open
        at = stop + 1


def _closing_lines(stream: IO[str], ahead: deque[str], fields: list[str], delimiter: str) -> list[str]:
    """The following lines up to the end of the last of these fields; none if a line looks like a row before it ends.

    Lines that do not belong to the field stay in `ahead`.
    """
    closing = re.compile(rf'(?:[^"]|"")*"(?:{re.escape(delimiter)}|\Z)')
    taken: list[str] = []
    while len(taken) < MOST_LINES_OF_A_FIELD and (line := _next_line(stream, ahead)) is not None:
        taken.append(line)
        if delimiter in line and any(map(_alike, fields[:-1], line.split(delimiter))):
            break
        if closing.match(line):
            return taken
    ahead.extendleft(reversed(taken))
    return []
