"""Dense captions for the images of any source: from D2S-VSE's line-by-line file, from a table, or joined captions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from itr.data.raw.entries import Entry, RawData
from itr.data.raw.files import read_json, squeeze, tell
from itr.data.raw.tables import read_rows
from itr.errors import UserError, refusing

JOIN = "join"
TABLES = (".json", ".jsonl", ".csv", ".tsv")
IMAGE_COLUMNS = ("image", "image_path", "filename", "file_name", "file", "name", "path", "key", "id", "asin")
TEXT_COLUMNS = ("dense", "dense_caption", "dense_captions", "text", "description", "captions", "caption")


def attach_dense(data: RawData, dense: str | None, published_order: bool = False) -> None:
    """Give the images of a source their dense captions, and note in its settings where they are from.

    Args:
        data: what the source found; its entries are changed.
        dense: `join` for an image's own captions in one text; or a file: a table (JSON, JSONL, CSV, TSV) with a column
            of image names, or D2S-VSE's JSONL with one line a training image and no names; None does nothing.
        published_order: whether the training images stand in the order in which D2S-VSE's file lists them.

    Raises:
        UserError: the file is not there, or does not fit the images.
    """
    if dense is None:
        return
    if dense == JOIN:
        for entry in _entries(data):
            entry.dense = [" ".join(entry.captions)]
        data.settings["dense"] = "the captions of each image, joined"
        return
    path = Path(dense).expanduser()
    if path.suffix.lower() not in TABLES or not path.is_file():
        raise UserError(f"dense is {dense!r}; it must be {JOIN!r} or a file that ends in {', '.join(TABLES)}")
    texts = _by_line(path)
    if texts is None:
        _attach_by_name(data, path)
    else:
        _attach_by_line(data, texts, path, published_order)
    data.settings["dense"] = path.name


def _entries(data: RawData) -> Iterable[Entry]:
    return (entry for found in data.entries.values() for entry in found)


def _by_line(path: Path) -> list[list[str]] | None:
    """The texts of a JSONL whose first row names no image; None where it does."""
    if path.suffix.lower() != ".jsonl":
        return None
    texts: list[list[str] | None] = []
    # A blank line counts: it may stand for an image.
    with refusing(f"{path} can't be read"), path.open(encoding="utf-8-sig", newline="\n") as stream:
        for number, line in enumerate(stream, 1):
            try:
                row = json.loads(line) if line.strip() else None
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {number}, is no JSON: {error}") from None
            if isinstance(row, dict) and any(name in row for name in IMAGE_COLUMNS):
                return None
            texts.append(None if row is None else _texts(row, path))
    while texts and texts[-1] is None:
        texts.pop()
    return [found or [] for found in texts]


def _attach_by_line(data: RawData, texts: list[list[str]], path: Path, published_order: bool) -> None:
    train = data.entries.get("train", [])
    if not texts or len(texts) != len(train):
        raise UserError(
            f"{path} has {len(texts):,} lines and train {len(train):,} images; it names no images, so each training "
            "image needs its line"
        )
    if not published_order:
        raise UserError(
            f"{path} names no images: its lines follow train_ids.txt, and the order of this layout is another; "
            "read the text files beside it (--layout text), or give a table with a column `image`"
        )
    for entry, found in zip(train, texts, strict=True):
        entry.dense = found
    print(
        f"{path.name} names no images; look whether its first line is of {train[0].image}: {' '.join(texts[0])[:100]}"
    )
    tell(f"{path.name}: images of train without a dense caption", [entry.image for entry in train if not entry.dense])


def _attach_by_name(data: RawData, path: Path) -> None:
    table: dict[str, list[str]] = {}
    for name, texts in _rows(path):
        table.setdefault(name, []).extend(texts)
    names = _short_names(table)
    used: set[str] = set()
    for entry in _entries(data):
        name = entry.image.rpartition("/")[2]
        keys = (entry.image, name, name.rpartition(".")[0])
        key = next((names[key] for key in keys if names.get(key)), None)
        if key is not None:
            entry.dense = table[key]
            used.add(key)
    if not used:
        raise UserError(
            f"{path} holds dense captions of {len(table)} images (first {next(iter(table), 'none')!r}), and none of "
            f"them is here (first {next(iter(_entries(data))).image!r})"
        )
    tell(f"{path.name}: dense captions of images that are not here", [key for key in table if key not in used])
    for split, found in data.entries.items():
        without = [entry.image for entry in found if not entry.dense]
        if split == "train" or len(without) < len(found):  # only training reads them
            tell(f"{split}: images without a dense caption", without)


def _short_names(table: dict[str, Any]) -> dict[str, str]:
    """The rows' keys by path, by file name and by that without its ending; "" where two share a short name."""
    names = {key: key for key in table}
    for key in table:
        name = key.replace("\\", "/").rpartition("/")[2]
        for short in {name, name.rpartition(".")[0]} - {"", key}:
            names[short] = "" if short in names and names[short] != key else key
    return names


def _rows(path: Path) -> Iterable[tuple[str, list[str]]]:
    """Name and texts of each row; a JSON file may also map names to texts."""
    raw = read_json(path) if path.suffix.lower() == ".json" else None  # a list of rows is read as a table is
    if isinstance(raw, dict):
        for name, value in raw.items():
            yield name, _texts(value if isinstance(value, dict) else {"dense": value}, path)
        return
    for row in read_rows(path):
        name = next((str(row[column]).strip() for column in IMAGE_COLUMNS if row.get(column) not in (None, "")), "")
        if not name:
            raise UserError(f"{path} has a row without an image; it needs a column {', '.join(IMAGE_COLUMNS[:4])}")
        yield name, _texts(row, path)


def _texts(row: Any, path: Path) -> list[str]:
    column = next((column for column in TEXT_COLUMNS if column in row), None) if isinstance(row, dict) else None
    if column is None:
        raise UserError(f"{path}: a row has none of {', '.join(TEXT_COLUMNS)}: {str(row)[:80]}")
    value = row[column]
    texts = [squeeze(text) for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
    return [text for text in texts if text]
