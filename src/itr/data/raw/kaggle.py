"""Kaggle's Flickr30K: `results.csv` with `image_name| comment_number| comment`, or `captions.txt` with `image,caption`.

Both have all 31,783 images of the data set and no split; Karpathy's split has 31,014 of them.
"""

from __future__ import annotations

from pathlib import Path

from itr.data.raw.entries import ImageEntry, draw_splits
from itr.data.raw.files import find_file, report_examples
from itr.data.raw.karpathy import karpathy_images
from itr.data.raw.layouts import SPLITS, RawFolder, RawLayout
from itr.data.raw.table_entries import Columns, TableEntries
from itr.data.tables.finding import FoundTable
from itr.data.tables.text_files import text_lines
from itr.errors import UserError

KAGGLE_FILES = ("results.csv", "captions.txt", "captions.csv")
KAGGLE_SPLIT = "dataset_flickr30k.json"


def kaggle_layout(raw: RawFolder, split_file: str | None, holdout: float, seed: int) -> RawLayout:
    """The layout that consists of one of `KAGGLE_FILES`.

    Args:
        raw: the folder of the data set.
        split_file: what defines the split; by default, what `find_kaggle_split` finds.
        holdout: fraction of the images to draw for val and for test without a split.
        seed: random seed of the draw.
    """

    def read(path: Path) -> dict[str, list[ImageEntry]]:
        entries = _entries(path, raw)
        split = find_kaggle_split(raw, split_file)
        return draw_splits(entries, holdout, seed, path.name) if split is None else _divided(entries, split)

    return RawLayout("Kaggle's captions", ", ".join(KAGGLE_FILES), lambda: _find(raw.path), read)


def _find(root: Path) -> Path | None:
    return next(filter(None, (find_file(root, [name]) for name in KAGGLE_FILES)), None)


def _entries(path: Path, raw: RawFolder) -> list[ImageEntry]:
    """The images, in the order of their first caption."""
    found = TableEntries(Columns())
    found.add(FoundTable(path), with_folder=False)
    entries = [entry for part in found.by_split().values() for entry in part]
    for entry in entries:
        entry.meta = {"source_id": entry.image}
        entry.image = raw.images.find(entry.image)
    return entries


def find_kaggle_split(raw: RawFolder, split_file: str | None) -> Path | None:
    """Karpathy's JSON, or the folder with lists of images; None if there is neither.

    Raises:
        UserError: the given file or folder does not exist.
    """
    if split_file is not None:
        path = Path(split_file).expanduser()
        if not path.exists():
            raise UserError(
                f"{path} does not exist; --split_file must be {KAGGLE_SPLIT}, or a folder with train.txt ..."
            )
        return path
    lists = find_file(raw.path, ["train.txt"])
    return find_file(raw.path, [KAGGLE_SPLIT]) or (lists.parent if lists else None)


def _divided(entries: list[ImageEntry], split: Path) -> dict[str, list[ImageEntry]]:
    """The images of each split, in the order of the files that define the splits."""
    by_stem = {_stem(entry.image): entry for entry in entries}
    names = _lists(split) if split.is_dir() else _karpathy(split)
    if not any(names.values()):
        raise UserError(f"{split} names no image; --split_file must be {KAGGLE_SPLIT}, or a folder with train.txt ...")
    missing = [name for listed in names.values() for name in listed if _stem(name) not in by_stem]
    divided = {
        part: [by_stem[_stem(name)] for name in dict.fromkeys(listed) if _stem(name) in by_stem]
        for part, listed in names.items()
    }
    num_left = len(by_stem) - sum(map(len, divided.values()))
    print(f"split from {split}: {len(by_stem) - num_left:,} of the {len(by_stem):,} images with captions")
    report_examples(f"skipped images of {split.name} without captions", missing)
    return divided


def _karpathy(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for image, part in karpathy_images(path, restval=True):
        found.setdefault(part, []).append(image["filename"])
    return found


def _lists(folder: Path) -> dict[str, list[str]]:
    paths = {part: folder / f"{part}.txt" for part in SPLITS}
    return {
        part: [line.strip() for line in text_lines(path) if line.strip()]
        for part, path in paths.items()
        if path.is_file()
    }


def _stem(name: str) -> str:
    """The name of an image without folder and extension: the lists of Flickr30K Entities have only this."""
    return name.rpartition("/")[2].removesuffix(".jpg")
