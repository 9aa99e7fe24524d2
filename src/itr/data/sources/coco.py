"""`itr prepare coco`: MS-COCO from any of its common file layouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from itr.data.raw.coco_official import (
    COCO_KARPATHY_FILE,
    OFFICIAL_SPLIT,
    find_official,
    find_split_file,
    read_official,
)
from itr.data.raw.entries import ImageEntry, RawData
from itr.data.raw.karpathy import karpathy_layout
from itr.data.raw.layouts import Collection, RawFolder, RawLayout, read_layout
from itr.data.raw.lines import text_layout
from itr.data.raw.rows import rows_layout
from itr.data.sources.base import Source

COCO_SIZES = {"train": 113_287, "val": 5_000, "test": 5_000}
STANDARD_CAPTIONS = 5


@dataclass
class Coco(Source):
    """MS-COCO, from its own captions files of 2014 or 2017, Karpathy's JSON, the text files of VSE-infinity, or rows.

    All captions are kept. The standard protocol uses the first five of each val or test image (`standard` in the
    sample), which gives the 25,000 captions of the 5K test.

    Args:
        root: folder of the captions files, or its parent folder.
        layout: official is captions_{train,val}2014.json or captions_{train,val}2017.json, divided by Karpathy's split;
            karpathy is dataset_coco.json alone; text is {train,dev,testall}_caps.txt and _ids.txt; rows is
            coco_{train,val,test}.json, coco_karpathy_{train,val,test}.json, new_{train,val,test}.json or
            {train,val,test}.json; auto detects it.
        image_root: folder of the images, or of train2014 and val2014, or train2017 and val2017; by default, root or its
            subfolder images. Images may have the names of either year in every layout.
        splits: comma-separated splits to read; by default, all available ones.
        restval: add the 30,504 images of Karpathy's `restval` to the training images, as is standard.
        split_file: split of the official captions: dataset_coco.json, or a folder with train_ids.txt, dev_ids.txt and
            testall_ids.txt; by default, the one found in root; `official` uses COCO's train and val unchanged.
        dense: dense captions: a JSON, JSONL, CSV, TSV or Parquet table with a column `image`; D2S-VSE's JSONL with one
            line per training image; or join, which joins an image's own captions.
    """

    root: str
    layout: Literal["auto", "karpathy", "text", "rows", "official"] = "auto"
    image_root: str | None = None
    splits: str | None = None
    restval: bool = True
    split_file: str | None = None
    dense: str | None = None

    def read(self) -> RawData:
        """The images of each split with their captions.

        Raises:
            UserError: no layout or several layouts are found, a file is malformed, or images and captions do not match.
        """
        raw = RawFolder.open(self.root, self.image_root, self.splits)
        layouts = _layouts(raw, self.restval, self.split_file)
        if self.layout == "auto" and layouts["official"].find():
            del layouts["karpathy"]  # here, dataset_coco.json only defines the split of the official captions
        name, entries = read_layout(raw.path, layouts, self.layout)
        mark_standard_captions(entries)
        settings = {"layout": name, "restval": self.restval}
        has_karpathy_split = name != "official" or find_split_file(raw.path, self.split_file) is not None
        if not has_karpathy_split:
            settings["split"] = OFFICIAL_SPLIT
        known = COCO_SIZES if has_karpathy_split else {}
        return Collection("coco", raw.images.root, entries, known, settings, name == "text").finish(
            self.splits, self.dense
        )


def _layouts(raw: RawFolder, restval: bool, split_file: str | None) -> dict[str, RawLayout]:
    folder, images, splits = raw.path, raw.images, raw.splits

    def name_of(id_: str, split: str) -> str | None:
        if not id_.isdecimal():
            return images.by_stem.get(id_.rpartition(".")[0] or id_)
        part = "train" if split == "train" else "val"  # a guess; the message about a missing image shows it
        return images.by_number.get(int(id_), f"{part}2014/COCO_{part}2014_{int(id_):012d}.jpg")

    return {
        "official": RawLayout(
            "official COCO captions files",
            "captions_{train,val}2014.json or captions_{train,val}2017.json",
            lambda: find_official(folder, images),
            lambda paths: read_official(folder, paths, images, split_file, restval),
        ),
        "karpathy": karpathy_layout(folder, COCO_KARPATHY_FILE, images, restval),
        "text": text_layout(folder, "{train,dev,testall}_caps.txt and _ids.txt", images, name_of, splits),
        "rows": rows_layout(folder, "coco", images, splits),
    }


def mark_standard_captions(entries: dict[str, list[ImageEntry]]) -> None:
    """Record how many captions of each val and test image the standard protocol uses, counted from the first."""
    for split in ("val", "test"):
        for entry in entries.get(split, []):
            entry.meta["standard"] = min(STANDARD_CAPTIONS, len(entry.captions))
