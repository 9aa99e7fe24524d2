"""Rows of Parquet files, and the images inside them, as data sets of the Hugging Face hub have them.

Such an image is a cell of bytes, or an object with `bytes` and `path`. A row has an `InnerImage` in its place: bytes
stay in the file until they are written out, so that a data set of any size can be read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itr.errors import UserError

BYTES, PATH = "bytes", "path"
ROWS_OF_IMAGES = 64  # rows in memory at a time
HEAD = 32  # bytes kept of each image, to recognise its type


@dataclass(frozen=True)
class InnerImage:
    """An image inside a Parquet file.

    Attributes:
        file: the Parquet file.
        column: its column.
        row: its row, from 0.
        path: name that the data set gives it; may be empty, and is not a file.
        digest: hash of its bytes; empty if the cell has none.
        head: its first bytes.
    """

    file: Path
    column: str
    row: int
    path: str
    digest: str
    head: bytes


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, with an `InnerImage` for each image.

    Raises:
        UserError: pyarrow is missing, or the file could not be read.
    """
    number = 0
    for batch in _batches(path, None):
        for cells in batch:
            for column, cell in cells.items():
                if _holds_bytes(cell):
                    cells[column] = _inner_image(path, column, number, cell)
            number += 1
            yield cells


def read_inner_images(path: Path, column: str, rows: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """The bytes of the images in some rows of a Parquet file, in the order of the file.

    Raises:
        UserError: the file could not be read.
    """
    wanted, number = set(rows), 0
    for batch in _batches(path, [column]):
        for cells in batch:
            if number in wanted:
                yield number, _bytes_of(cells[column])
            number += 1


def _batches(path: Path, columns: list[str] | None) -> Iterator[list[dict[str, Any]]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError("reading Parquet needs pyarrow: pip install 'itr[parquet]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            size = ROWS_OF_IMAGES if "binary" in str(file.schema_arrow) else 1 << 14
            for batch in file.iter_batches(batch_size=size, columns=columns):
                yield batch.to_pylist()
    except Exception as error:  # pyarrow has its own errors, and raises others on damaged files
        raise UserError(f"could not read {path} as Parquet: {error}") from None


def _holds_bytes(cell: Any) -> bool:
    return isinstance(cell, bytes) or (isinstance(cell, Mapping) and BYTES in cell)


def _bytes_of(cell: Any) -> bytes:
    found = cell.get(BYTES) if isinstance(cell, Mapping) else cell
    return found if isinstance(found, bytes) else b""


def _inner_image(file: Path, column: str, row: int, cell: Any) -> InnerImage:
    data, path = _bytes_of(cell), cell.get(PATH) if isinstance(cell, Mapping) else ""
    digest = hashlib.blake2b(data, digest_size=16).hexdigest() if data else ""
    return InnerImage(file, column, row, path if isinstance(path, str) else "", digest, data[:HEAD])
