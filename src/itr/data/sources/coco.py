"""`itr prepare coco`: MS-COCO 2014 from each of the layouts in which it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from itr.data.raw.coco_official import KARPATHY, OWN_SPLIT, find_official, find_split_file, read_official
from itr.data.raw.entries import Entry, RawData
from itr.data.raw.files import find_folder
from itr.data.raw.image_folders import ImageFolders
from itr.data.raw.karpathy import karpathy_layout
from itr.data.raw.layouts import SPLITS, Collection, Layout, read_layout, split_names
from itr.data.raw.lines import text_layout
from itr.data.raw.rows import rows_layout
from itr.data.sources.base import Source

KNOWN = {"train": 113_287, "val": 5_000, "test": 5_000}
STANDARD_CAPTIONS = 5


@dataclass
class Coco(Source):
    """MS-COCO 2014, from its own captions files, Karpathy's JSON, the text files of VSE-infinity, or rows.

    All captions are kept; of an image of val or test the first five count in the standard protocol (`standard` in the
    sample), which makes the 25,000 of the 5K test.

    Args:
        root: folder of the caption files; they may also lie in a folder right below it.
        layout: official is captions_{train,val}2014.json, divided by Karpathy's split; karpathy is dataset_coco.json
            alone; text is {train,dev,testall}_caps.txt and _ids.txt; rows is coco_{train,val,test}.json,
            coco_karpathy_{train,val,test}.json, new_{train,val,test}.json or {train,val,test}.json; auto recognises it.
        image_root: folder of the images, or of train2014 and val2014; by default root, or images in it.
        splits: splits to read, with commas between them; by default all that are there.
        restval: train on the 30,504 images of Karpathy's `restval` too, as everybody does.
        split_file: for official captions: dataset_coco.json, or a folder with train_ids.txt, dev_ids.txt and
            testall_ids.txt; by default what lies in root; `official` takes COCO's train and val as they are.
        dense: dense captions: a JSON, JSONL, CSV or TSV table with a column `image`; D2S-VSE's JSONL with one line a
            training image; or join, which joins an image's own captions.
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
            UserError: no layout or several are found, a file is damaged, or images and captions don't fit.
        """
        folder = find_folder(self.root)
        images = ImageFolders.under(folder, self.image_root)
        layouts = _layouts(folder, images, split_names(self.splits) or list(SPLITS), self.restval, self.split_file)
        if self.layout == "auto" and layouts["official"].find():
            del layouts["karpathy"]  # it then serves as the split of the official captions
        name, entries = read_layout(folder, layouts, self.layout)
        mark_standard(entries)
        settings = {"layout": name, "restval": self.restval}
        divided = name != "official" or find_split_file(folder, self.split_file) is not None
        if not divided:
            settings["split"] = OWN_SPLIT
        known = KNOWN if divided else {}
        return Collection("coco", images.root, entries, known, settings, name == "text").finish(self.splits, self.dense)


def _layouts(
    folder: Path, images: ImageFolders, wanted: list[str], restval: bool, split_file: str | None
) -> dict[str, Layout]:
    def name_of(id_: str, split: str) -> str | None:
        if not id_.isdecimal():
            return images.by_stem.get(id_.rpartition(".")[0] or id_)
        part = "train" if split == "train" else "val"  # a guess, which the message on a missing image then names
        return images.by_number.get(int(id_), f"{part}2014/COCO_{part}2014_{int(id_):012d}.jpg")

    return {
        "official": Layout(
            "COCO's captions files",
            "captions_{train,val}2014.json",
            lambda: find_official(folder),
            lambda paths: read_official(folder, paths, images, split_file, restval),
        ),
        "karpathy": karpathy_layout(folder, KARPATHY, images, restval),
        "text": text_layout(folder, "{train,dev,testall}_caps.txt and _ids.txt", images, name_of, wanted),
        "rows": rows_layout(folder, "coco", images, wanted),
    }


def mark_standard(entries: dict[str, list[Entry]]) -> None:
    """Note how many of an image's captions, from the first on, the standard protocol of val and test uses."""
    for split in ("val", "test"):
        for entry in entries.get(split, []):
            entry.meta["standard"] = min(STANDARD_CAPTIONS, len(entry.captions))
