"""`itr prepare camoit`: camouflaged objects, one caption per image.

CECNet's data set, "Camouflage-aware Image-Text Retrieval via Expert Collaboration",
https://github.com/jiangyao-scu/CA-ITR.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from itr.data.raw.entries import ImageEntry, RawData
from itr.data.raw.files import find_file, read_json, report_examples, require_folder
from itr.data.raw.image_folders import ImageFolders
from itr.data.raw.layouts import Collection
from itr.data.sources.base import Source
from itr.data.tables.cells import cell_texts
from itr.errors import UserError, shown
from itr.images.kinds import IMAGE_TYPES

IMAGE_FOLDERS = ("images", "CamoIT/images", "")
IMAGE_SUFFIXES = tuple(f".{kind}" for kind in IMAGE_TYPES)
MASK_FOLDER = "mask_zoomnext"
CAMOIT_SIZES = {"train": 7_464, "test": 3_000}  # the published split, before val is drawn from train


@dataclass
class CamoIT(Source):
    """CamoIT: camouflaged objects, one caption per image; val is drawn from train, since the data set has none.

    Args:
        root: folder with train.json, test.json and images, or its parent folder.
        level: text to use as the caption: 1 is a category, 2 the object, 3 the full caption, as published.
        holdout_val: fraction of the training images to draw for val, so that nothing is tuned on test; 0 disables it.
        seed: random seed of that draw.
        image_root: folder of the images; by default, images next to the two files.
        dense: dense captions: a JSON, JSONL, CSV, TSV or Parquet table with a column `image`, or join.
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
            raise UserError(f"holdout_val={self.holdout_val} must be at least 0 and less than 1")
        folder = require_folder(self.root)
        found = {split: find_file(folder, [f"{split}.json"]) for split in CAMOIT_SIZES}
        paths = {split: path for split, path in found.items() if path}
        if not paths:
            raise UserError(f"found no train.json or test.json of CamoIT in {folder} or in a folder directly below it")
        print(f"CamoIT: {', '.join(map(str, paths.values()))}")
        home = next(iter(paths.values())).parent
        images = ImageFolders(_require_image_root(self.image_root) if self.image_root else home, IMAGE_FOLDERS)
        masks = {path.stem for path in (home / MASK_FOLDER).glob("*.png")}
        entries = {split: _read(path, f"caption{self.level}", images, masks) for split, path in paths.items()}
        for split, number in CAMOIT_SIZES.items():
            if (here := len(entries.get(split, []))) != number:
                print(f"NOTE: {split} has {here:,} images; the published split has {number:,}")
        entries |= _hold_out(entries.get("train", []), self.holdout_val, self.seed)
        settings = {"level": self.level, "holdout_val": self.holdout_val}
        return Collection("camoit", images.root, entries, settings=settings).finish(None, self.dense)


def _require_image_root(image_root: str) -> Path:
    folder = Path(image_root).expanduser()
    if not folder.is_dir():
        raise UserError(f"folder {folder} does not exist; pass the folder of the images as --image_root")
    return folder


def _read(path: Path, column: str, images: ImageFolders, masks: set[str]) -> list[ImageEntry]:
    rows: Any = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.get("name") for row in rows):
        raise UserError(f"{path} is not a CamoIT file: it must be a list of rows with `name`")
    if rows and not any(column in row for row in rows):
        raise UserError(f"{path} has no {column}, only {', '.join(rows[0])}; choose another --level")
    entries: list[ImageEntry] = []
    blank: list[object] = []
    for row in rows:
        name = str(row["name"])
        texts = cell_texts(row.get(column), f"{path}, {shown(name)}", column)
        if not texts:
            blank.append(name)
            continue
        image = images.find(name)
        if image == name and name not in images.paths:  # a name without its extension
            missing = name if name.lower().endswith(IMAGE_SUFFIXES) else f"{name}.jpg"
            image = images.by_stem.get(name.rpartition("/")[2], missing)
        stem = image.rpartition("/")[2].rpartition(".")[0]
        meta = {"source_id": name} | ({"mask": f"{MASK_FOLDER}/{stem}.png"} if stem in masks else {})
        entries.append(ImageEntry(image, texts, meta=meta))
    report_examples(f"{path.name}: skipped rows without {column}", blank)
    return entries


def _hold_out(train: list[ImageEntry], fraction: float, seed: int) -> dict[str, list[ImageEntry]]:
    if not train:
        return {}
    number = max(1, round(fraction * len(train))) if fraction else 0
    held = set(np.random.default_rng(seed).permutation(len(train))[:number].tolist())
    if not number or number == len(train):
        print("no val split is drawn from train (--holdout_val); train with --data.val_split null")
        return {}
    print(f"CamoIT has no val split: drew {number:,} of its {len(train):,} training images for it (--holdout_val)")
    return {
        "train": [entry for i, entry in enumerate(train) if i not in held],
        "val": [entry for i, entry in enumerate(train) if i in held],
    }
