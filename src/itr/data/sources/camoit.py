"""`itr prepare camoit`: camouflaged objects with one caption an image.

CECNet's data set, "Camouflage-aware Image-Text Retrieval via Expert Collaboration",
https://github.com/jiangyao-scu/CA-ITR.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from itr.data.raw.entries import Entry, RawData
from itr.data.raw.files import find_file, find_folder, read_json, squeeze, tell
from itr.data.raw.image_folders import ImageFolders
from itr.data.raw.layouts import Collection
from itr.data.shards.schema import IMAGE_TYPES
from itr.data.sources.base import Source
from itr.errors import UserError

IMAGE_FOLDERS = ("images", "CamoIT/images", "")
ENDINGS = tuple(f".{kind}" for kind in IMAGE_TYPES)
MASKS = "mask_zoomnext"
KNOWN = {"train": 7_464, "test": 3_000}  # the published split, before val is drawn from train


@dataclass
class CamoIT(Source):
    """CamoIT: camouflaged objects, one caption an image; val is drawn from train, since the set has none.

    Args:
        root: folder with train.json, test.json and images, or the folder above it.
        level: which of an image's texts is its caption: 1 a category, 2 the object, 3 the full caption, as published.
        holdout_val: share of the training images drawn for val, so that nothing is chosen on test; 0 keeps all.
        seed: of that draw.
        image_root: folder of the images; by default images beside the two files.
        dense: dense captions: a JSON, JSONL, CSV or TSV table with a column `image`, or join.
    """

    root: str
    level: Literal[1, 2, 3] = 3
    holdout_val: float = 0.05
    seed: int = 0
    image_root: str | None = None
    dense: str | None = None

    def read(self) -> RawData:
        """The images of each split with their captions.

        Raises:
            UserError: a file is missing or damaged, or no row has a caption of that level.
        """
        if not 0 <= self.holdout_val < 1:
            raise UserError(f"holdout_val is {self.holdout_val}; it must be from 0 to below 1")
        folder = find_folder(self.root)
        found = {split: find_file(folder, [f"{split}.json"]) for split in KNOWN}
        paths = {split: path for split, path in found.items() if path}
        if not paths:
            raise UserError(f"{folder} is no CamoIT: looked there and one folder below for train.json and test.json")
        print(f"CamoIT: {', '.join(map(str, paths.values()))}")
        home = next(iter(paths.values())).parent
        images = ImageFolders(_existing(self.image_root) if self.image_root else home, IMAGE_FOLDERS)
        masks = {path.stem for path in (home / MASKS).glob("*.png")}
        entries = {split: _read(path, f"caption{self.level}", images, masks) for split, path in paths.items()}
        for split, number in KNOWN.items():
            if (here := len(entries.get(split, []))) != number:
                print(f"NOTE: {split} has {here:,} images here; the published split has {number:,}")
        entries |= _hold_out(entries.get("train", []), self.holdout_val, self.seed)
        settings = {"level": self.level, "holdout_val": self.holdout_val}
        return Collection("camoit", images.root, entries, settings=settings).finish(None, self.dense)


def _existing(image_root: str) -> Path:
    folder = Path(image_root).expanduser()
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; --image_root is the folder of the images")
    return folder


def _read(path: Path, column: str, images: ImageFolders, masks: set[str]) -> list[Entry]:
    rows: Any = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.get("name") for row in rows):
        raise UserError(f"{path} is no list of rows with `name`, as CamoIT's are")
    if rows and not any(column in row for row in rows):
        raise UserError(f"{path} has no {column}; its rows have {', '.join(rows[0])}; see --level")
    entries: list[Entry] = []
    blank: list[object] = []
    for row in rows:
        name, text = str(row["name"]), row.get(column)
        if not isinstance(text, str) or not text.strip():
            blank.append(name)
            continue
        image = images.find(name)
        if image == name and name not in images.paths:  # a name without its ending
            missing = name if name.lower().endswith(ENDINGS) else f"{name}.jpg"
            image = images.by_stem.get(name.rpartition("/")[2], missing)
        stem = image.rpartition("/")[2].rpartition(".")[0]
        meta = {"source_id": name} | ({"mask": f"{MASKS}/{stem}.png"} if stem in masks else {})
        entries.append(Entry(image, [squeeze(text)], meta=meta))
    tell(f"{path.name}: rows without {column} left out", blank)
    return entries


def _hold_out(train: list[Entry], share: float, seed: int) -> dict[str, list[Entry]]:
    if not train:
        return {}
    number = max(1, round(share * len(train))) if share else 0
    held = set(np.random.default_rng(seed).permutation(len(train))[:number].tolist())
    if not number or number == len(train):
        print("no val is drawn from train (--holdout_val); train with --data.val_split null")
        return {}
    print(f"CamoIT has no val: {number:,} of its {len(train):,} training images are drawn for it (--holdout_val)")
    return {
        "train": [entry for at, entry in enumerate(train) if at not in held],
        "val": [entry for at, entry in enumerate(train) if at in held],
    }
