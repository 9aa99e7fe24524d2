"""The images of tables with their captions: columns to read, rows of one image, splits by file, folder or column."""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from itr.data.raw.entries import ImageEntry
from itr.data.raw.files import report_examples
from itr.data.tables.cells import cell_key, cell_texts
from itr.data.tables.finding import METADATA, SPLIT_ALIASES, FoundTable, split_of_path
from itr.data.tables.parquet import InnerImage
from itr.data.tables.reading import Row, read_rows
from itr.errors import UserError, shown
from itr.images.kinds import IMAGE_TYPES, image_type, type_of_bytes

TABLE_IMAGE_COLUMNS = (
    "image", "image_path", "filepath", "file_path", "filename", "file_name", "image_name", "file", "path", "img",
    "jpg", "png", "webp",
)  # fmt: skip
TABLE_CAPTION_COLUMNS = (
    "captions", "caption", "text", "texts", "sentences", "description", "title", "comment", "raw", "txt",
)  # fmt: skip
NUMBERED_CAPTION = re.compile(r"(?:caption|text|sentence|comment)s?[ _-]?\d+", re.IGNORECASE)
INNER = "inside:"  # begins the key of an image inside a Parquet file, before the hash of its bytes
LONGEST_INNER_NAME = 200  # bytes
MOST_NAMED = 20  # columns in a message
NO_CAPTIONS = ("nan", "none", "null", "<na>", "n/a", "na")  # what programs write for a missing text


class FoundColumns(NamedTuple):
    """The columns of a table: image, captions, split and dense captions; the last two may be absent."""

    image: str
    captions: list[str]
    split: str | None
    dense: str | None


@dataclass
class Columns:
    """The columns of images and captions, as the user names them; None to find them by their usual names."""

    image: str | None = None
    caption: str | None = None

    def find(self, row: Row, name: str) -> FoundColumns:
        """The columns of a table, which are reported; upper and lower case are the same.

        Raises:
            UserError: the table has no column of images or captions.
        """
        named = {column.lower(): column for column in row} | {column: column for column in row}
        image = self.image or next((named[column] for column in TABLE_IMAGE_COLUMNS if column in named), None)
        usual = next((named[column] for column in TABLE_CAPTION_COLUMNS if column in named), None)
        numbered = [column for column in row if NUMBERED_CAPTION.fullmatch(column)]
        captions = [self.caption] if self.caption else [usual] if usual else numbered
        for title, given, found in (("image", self.image, [image]), ("caption", self.caption, captions)):
            if not found or any(column not in row for column in found):
                known = [shown(column)[1:-1] for column in row]
                raise UserError(
                    f"{name} has no {title} column{f' {shown(given)}' if given else ''}; choose one of "
                    f"{', '.join(known[:MOST_NAMED])}{', ...' * (len(known) > MOST_NAMED)} with --{title}_column"
                )
        assert image is not None
        split, dense = named.get("split"), named.get("dense")
        unread = [column for column in row if column not in (image, *captions, split, dense, "")]
        others = f"; columns that are not read: {', '.join(unread[:10])}{', ...' * (len(unread) > 10)}" * bool(unread)
        print(f"{name}: images from the column {image}, captions from {', '.join(captions)}{others}")
        return FoundColumns(image, captions, split, dense)


class TableEntries:
    """Collects the images of the tables of a data set; rows of the same image are merged.

    Args:
        columns: which columns to read.
        root: folder that the image paths are relative to; None if they are found by other means.

    Attributes:
        inner: images inside Parquet files, by the key of their entries.
        names: the tables, for messages.
    """

    def __init__(self, columns: Columns, root: Path | None = None) -> None:
        self.columns, self.root = columns, root
        self.inner: dict[str, InnerImage] = {}
        self._files: list[str] = []
        self._groups: dict[tuple[str, str], dict[str, ImageEntry]] = {}  # by split of the file and of the row

    @property
    def names(self) -> str:
        """The names of the tables."""
        return ", ".join(self._files)

    def add(self, table: FoundTable, with_folder: bool) -> None:
        """Add the rows of a table.

        Args:
            table: the table.
            with_folder: whether image paths are relative to the folder of the table.

        Raises:
            UserError: the table is malformed.
        """
        self._files.append(table.path.name)
        skipped, blank, missing = list[str](), list[str](), list[str]()
        folder = f"{table.folder}/" if table.folder and with_folder else ""
        found: FoundColumns | None = None
        for row in read_rows(table.path):
            found = found or self.columns.find(row, table.path.name)
            image = self._image(row, found.image, folder)
            captions = [text for name in found.captions for text in cell_texts(row.get(name), row.where, name, blank)]
            if not image or not captions:
                skipped.append(row.where)
                continue
            missing += [row.where for text in captions if text.lower() in NO_CAPTIONS]
            split = _split_of_row(row, found.split, table) if found.split else ""
            if not found.split and not table.split and table.path.stem.lower() == METADATA:
                split = split_of_path(image)
            entry = self._groups.setdefault((table.split, split), {}).setdefault(image, ImageEntry(image))
            entry.captions += captions
            entry.dense += cell_texts(row.get(found.dense or ""), row.where, "dense", blank)
        for what, places in (
            ("skipped rows without an image or a caption", skipped),
            ("skipped empty captions", blank),
            ("captions that say only nan, None or the like, kept as texts", missing),
        ):
            report_examples(f"{table.path.name}: {what}", [place.rpartition(", ")[2] for place in places])

    def _image(self, row: Row, column: str, folder: str) -> str:
        """The path of the image of a row, or its key in `inner`; empty if it has none."""
        cell = row.get(column)
        if isinstance(cell, InnerImage) and cell.digest:
            self.inner.setdefault(INNER + cell.digest, cell)
            return INNER + cell.digest
        name = cell.path if isinstance(cell, InnerImage) else cell_key(cell, row.where, column)
        if "\\" in name and self.root and not os.path.exists(self.root / folder / name):  # written on Windows
            name = name.replace("\\", "/")
        path = name if not name or name.startswith("/") else folder + name
        return path if not path or ".." in path.split("/") else posixpath.normpath(path)  # `./a.jpg` is `a.jpg`

    def by_split(self) -> dict[str, list[ImageEntry]]:
        """The images of each split: by the column `split` if all rows have it, else by the names of files and folders.

        Images of no split have the key "".
        """
        by_row = all(row for _, row in self._groups)
        if by_row and any(file not in ("", row) for file, row in self._groups):
            print("the column split says which split an image is in, not the name of its file")
        merged: dict[str, dict[str, ImageEntry]] = {}
        for (file, row), entries in self._groups.items():
            images = merged.setdefault(row if by_row else file, {})
            for key, entry in entries.items():
                known = images.setdefault(key, entry)
                if known is not entry:
                    known.captions += entry.captions
                    known.dense += entry.dense
        return {split: list(images.values()) for split, images in merged.items()}


def _split_of_row(row: Row, column: str, table: FoundTable) -> str:
    name = str(row.get(column)).strip().lower()
    if name in SPLIT_ALIASES:
        return SPLIT_ALIASES[name]
    if table.split:
        return ""
    raise UserError(
        f"{row.where} has the unknown split {shown(row.get(column))}; use one of {', '.join(SPLIT_ALIASES)}"
    )


def name_inner_images(entries: dict[str, list[ImageEntry]], inner: dict[str, InnerImage]) -> dict[str, InnerImage]:
    """Give the entries of images inside Parquet files the names that the data set has for them, or else numbers.

    Returns:
        The images by these names.

    Raises:
        UserError: other rows have only the path of an image.
    """
    if not inner:
        return {}
    found = {entry.image: entry for part in entries.values() for entry in part}
    if outside := next((image for image in found if image not in inner), None):
        raise UserError(
            f"some rows contain images, but the row of {shown(outside)} does not; use one table of each kind"
        )
    names = {key: _inner_name(inner[key]) for key in found}
    counts = Counter(names.values())
    for key, name in names.items():
        if counts[name] > 1:
            names[key] = f"{inner[key].file.stem}-{inner[key].row:08d}-{name}"
    for part in entries.values():
        for entry in part:
            entry.image = names[entry.image]
    return {name: inner[key] for key, name in names.items()}


def _inner_name(image: InnerImage) -> str:
    """The file name of an image, without folders, since it is not a path to trust."""
    kind = type_of_bytes(image.head) or "bin"
    name = PurePosixPath(image.path.replace("\\", "/")).name
    if not name.strip(".") or not name.isprintable() or len(name.encode(errors="replace")) > LONGEST_INNER_NAME:
        return f"{image.file.stem}-{image.row:08d}.{kind}"
    return name if image_type(name) in IMAGE_TYPES else f"{name}.{kind}"
