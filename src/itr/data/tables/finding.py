"""Finding the tables of a data set: one table, tables by split, or the layouts of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from itr.data.tables.reading import TABLE_SUFFIXES
from itr.data.tables.text_files import table_kind
from itr.errors import UserError

SPLIT_ALIASES = {
    "train": "train", "training": "train", "restval": "train", "val": "val", "valid": "val", "validation": "val",
    "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip
METADATA = "metadata"  # name of the table of the hub's layout `imagefolder`
TEXT_TABLES = ("captions.txt",)  # tables of Kaggle's data sets whose suffix does not say so
NO_TABLES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
PART = re.compile(r"-(\d+)-of-(\d+)(?:-[0-9a-f]+)?$")  # of the hub's file names: train-00000-of-00004-0a1b.parquet


@dataclass(frozen=True)
class FoundTable:
    """A table of a data set.

    Attributes:
        path: the file.
        split: its split; empty if the table has images of all splits.
        folder: folder that its image paths are relative to, itself relative to the data set; empty for that folder.
    """

    path: Path
    split: str = ""
    folder: str = ""


def find_tables(root: Path) -> list[FoundTable]:
    """The tables of a data set, by split and in the order of their names.

    Raises:
        UserError: there are none, or it is unclear which ones to read.
    """
    if root.is_file():
        return [FoundTable(root)]
    if not root.is_dir():
        raise UserError(f"{root} does not exist; pass a table or a folder with tables as --root")
    tables = _tables(root)
    if found := _named(tables):
        if unread := sorted({path.name for path in tables} - {table.path.name for table in found}):
            print(f"tables that are not read: {', '.join(unread[:5])}{', ...' * (len(unread) > 5)}")
        return found
    if len(tables) == 1:
        return [FoundTable(tables[0])]
    if not tables:
        found = _in_split_folders(root) or _named(_tables(root / "data"), "data") or _in_split_folders(root, "data/")
        if found:
            return found
    names = ", ".join(path.name for path in tables[:5]) + ", ..." * (len(tables) > 5) or "no table"
    raise UserError(
        f"{root} must contain one table, tables named train, val and test ({', '.join(TABLE_SUFFIXES)}), or folders of "
        f"these names with a table `metadata`; it has {names}"
    )


def split_of_path(path: str) -> str:
    """The split in whose folder an image is, as `train/0001.jpg`; empty if it is in no such folder."""
    folder, slash, _ = path.removeprefix("./").partition("/")
    return SPLIT_ALIASES.get(folder.lower(), "") if slash else ""


def _tables(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = [path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file()]
    tables = [path for path in files if table_kind(path) in TABLE_SUFFIXES and path.name.lower() not in NO_TABLES]
    return sorted(tables + [path for path in files if path.name.lower() in TEXT_TABLES])


def _named(tables: Iterable[Path], folder: str = "") -> list[FoundTable]:
    """The tables whose name is a split, or a split with the number of a part."""
    by_split: dict[str, dict[str, list[Path]]] = {}
    for path in tables:
        stem = path.name.removesuffix(".gz").rpartition(".")[0]
        split = SPLIT_ALIASES.get(PART.sub("", stem).lower())
        if split:
            by_split.setdefault(split, {}).setdefault(PART.sub(r"-of-\2", path.stem) + path.suffix, []).append(path)
    for split, groups in by_split.items():
        if len(groups) > 1:
            first, second, *_ = (paths[0] for paths in groups.values())
            raise UserError(f"both {first} and {second} could be the table of split {split!r}; keep one")
        _check_parts(next(iter(groups.values())))
    return [
        FoundTable(path, split, folder)
        for split in ("train", "val", "test")
        for paths in by_split.get(split, {}).values()
        for path in paths
    ]


def _check_parts(paths: list[Path]) -> None:
    """Refuse a table in several files if one is missing, or is there twice."""
    parts = [part for path in paths if (part := PART.search(path.stem))]
    if not parts and len(paths) == 1:
        return
    if sorted(int(part[1]) for part in parts) != list(range(int(parts[0][2]))):
        raise UserError(
            f"{paths[0]} is one of {int(parts[0][2])} parts, but its folder has {len(paths)}; "
            "fetch all of them, and keep each one once"
        )


def _in_split_folders(root: Path, inside: str = "") -> list[FoundTable]:
    """The table of each folder that is named like a split, in the folder `inside` of the data set."""
    folders: dict[str, Path] = {}
    without = []
    for folder in sorted(path for path in root.glob(f"{inside}*") if path.is_dir()):
        split = SPLIT_ALIASES.get(folder.name.lower())
        if split and not _tables(folder):
            without.append(folder.name)
        elif split:
            if split in folders:
                raise UserError(f"both {folders[split]} and {folder} could be the split {split!r}; keep one")
            folders[split] = folder
    if folders and without:
        print(f"folders that are not read, because they have no table: {', '.join(without)}")
    return [
        FoundTable(path, split, f"{inside}{folder.name}")
        for split, folder in sorted(folders.items(), key=lambda found: ("train", "val", "test").index(found[0]))
        for path in _tables_of_split(folder)
    ]


def _tables_of_split(folder: Path) -> list[Path]:
    """The table `metadata` of a folder, the only one, or the numbered parts of one: `0000.parquet`."""
    tables = _tables(folder)
    named = [path for path in tables if path.stem.lower() == METADATA]
    if len(named) == 1:
        return named
    if len(tables) == 1 or all(path.stem.isdecimal() for path in tables):
        return tables
    raise UserError(f"{folder} has several tables ({', '.join(path.name for path in tables[:5])}); keep one")
