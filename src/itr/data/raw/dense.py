"""Dense captions for the images of any source: from D2S-VSE's line-by-line file, a table, or joined captions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from itr.data.raw.entries import ImageEntry, RawData
from itr.data.raw.files import read_json, report_examples
from itr.data.tables.cells import cell_key, cell_texts
from itr.data.tables.reading import read_json_lines, read_rows
from itr.errors import UserError, refusing, shown

JOIN = "join"
DENSE_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
DENSE_KEY_COLUMNS = ("image", "image_path", "filename", "file_name", "file", "name", "path", "key", "id", "asin")
DENSE_TEXT_COLUMNS = ("dense", "dense_caption", "dense_captions", "text", "description", "captions", "caption")


def attach_dense(data: RawData, dense: str | None, published_order: bool = False) -> None:
    """Add dense captions to the images of a source, and record in its settings where they come from.

    Args:
        data: what the source found; its entries are changed in place.
        dense: `join` to join each image's own captions into one text; or a file: a table (`DENSE_SUFFIXES`) with
            a column of image names, or D2S-VSE's JSONL, which has one line per training image and no names. None
            does nothing.
        published_order: whether the training images are in the order of D2S-VSE's file.

    Raises:
        UserError: the file does not exist, or does not match the images.
    """
    if dense is None:
        return
    if dense == JOIN:
        for entry in _entries(data):
            entry.dense = [" ".join(entry.captions)]
        data.settings["dense"] = "the captions of each image, joined"
        return
    path = Path(dense).expanduser()
    if path.suffix.lower() not in DENSE_SUFFIXES or not path.is_file():
        raise UserError(f"dense={dense!r} must be {JOIN!r} or an existing {', '.join(DENSE_SUFFIXES)} file")
    texts = _by_line(path)
    if texts is None:
        _attach_by_name(data, path)
    else:
        _attach_by_line(data, texts, path, published_order)
    data.settings["dense"] = path.name


def _entries(data: RawData) -> Iterable[ImageEntry]:
    return (entry for found in data.entries.values() for entry in found)


def _by_line(path: Path) -> list[list[str]] | None:
    """The texts of each line of a JSONL file without image names; None if a row names its image."""
    if path.suffix.lower() != ".jsonl":
        return None
    texts: list[list[str] | None] = []
    # A blank line counts: it may stand for an image.
    with refusing(f"could not read {path}"):
        for number, row in read_json_lines(path, blank=True):
            if isinstance(row, dict) and any(name in row for name in DENSE_KEY_COLUMNS):
                return None
            texts.append(None if row is None else _texts(row, f"{path}, line {number}"))
    while texts and texts[-1] is None:
        texts.pop()
    return [found or [] for found in texts]


def _attach_by_line(data: RawData, texts: list[list[str]], path: Path, published_order: bool) -> None:
    train = data.entries.get("train", [])
    if not texts or len(texts) != len(train):
        raise UserError(
            f"{path} has {len(texts):,} lines but train has {len(train):,} images; the file does not name images, "
            "so it must have one line per training image"
        )
    if not published_order:
        raise UserError(
            f"{path} does not name images: its lines follow train_ids.txt, but this layout has a different order; "
            "read the text files instead (--layout text), or pass a table with a column `image`"
        )
    for entry, found in zip(train, texts, strict=True):
        entry.dense = found
    print(
        f"{path.name} does not name images; check that its first line describes {train[0].image}: "
        f"{' '.join(texts[0])[:100]}"
    )
    report_examples(
        f"{path.name}: training images without a dense caption", [entry.image for entry in train if not entry.dense]
    )


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
            f"{path} has dense captions for {len(table)} images (the first is {next(iter(table), 'none')!r}), but for "
            f"none of the images of this data set (the first is {next(iter(_entries(data))).image!r})"
        )
    report_examples(
        f"{path.name}: dense captions for images that are not in the data set",
        [key for key in table if key not in used],
    )
    for split, found in data.entries.items():
        without = [entry.image for entry in found if not entry.dense]
        if split == "train" or len(without) < len(found):  # only training uses dense captions
            report_examples(f"{split}: images without a dense caption", without)


def _short_names(table: dict[str, Any]) -> dict[str, str]:
    """The row keys by path, by file name and by file name without extension; "" if two rows share a short name."""
    names = {key: key for key in table}
    for key in table:
        name = key.replace("\\", "/").rpartition("/")[2]
        for short in {name, name.rpartition(".")[0]} - {"", key}:
            names[short] = "" if short in names and names[short] != key else key
    return names


def _rows(path: Path) -> Iterable[tuple[str, list[str]]]:
    """Image name and texts of each row; a JSON file may also map names to texts."""
    raw = read_json(path) if path.suffix.lower() == ".json" else None  # a list of rows is read like any other table
    if isinstance(raw, dict):
        for name, value in raw.items():
            yield name, _texts(value if isinstance(value, dict) else {"dense": value}, f"{path}, {shown(name)}")
        return
    for row in read_rows(path):
        keys = (cell_key(row[column], row.where, column) for column in DENSE_KEY_COLUMNS if column in row)
        name = next(filter(None, keys), "")
        if not name:
            raise UserError(
                f"{row.where} is without an image name; add a column such as {', '.join(DENSE_KEY_COLUMNS[:4])}"
            )
        yield name, _texts(row, row.where)


def _texts(row: Any, where: str) -> list[str]:
    column = next((column for column in DENSE_TEXT_COLUMNS if column in row), None) if isinstance(row, dict) else None
    if column is None:
        raise UserError(f"{where} has no text in any of the columns {', '.join(DENSE_TEXT_COLUMNS)}: {shown(row)}")
    return cell_texts(row[column], where, column)
