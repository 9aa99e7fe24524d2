"""`itr prepare flickr30k`: Flickr30K from any of its common file layouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from itr.data.raw.entries import RawData
from itr.data.raw.kaggle import find_kaggle_split, kaggle_layout
from itr.data.raw.karpathy import karpathy_layout
from itr.data.raw.layouts import Collection, RawFolder, read_layout
from itr.data.raw.lines import is_sorted, text_layout
from itr.data.raw.rows import rows_layout
from itr.data.sources.base import Source

FLICKR30K_KARPATHY_FILE = "dataset_flickr30k.json"
FLICKR30K_SIZES = {"train": 29_000, "val": 1_014, "test": 1_000}


@dataclass
class Flickr30K(Source):
    """Flickr30K, from Karpathy's JSON, VSE-infinity's text files, ALBEF's or CUSA's rows, or Kaggle's captions.

    Args:
        root: folder of the captions files, or its parent folder.
        layout: karpathy is dataset_flickr30k.json; text is {train,dev,test}_caps.txt and _ids.txt with id_mapping.json;
            rows is flickr30k_{train,val,test}.json, new_{train,val,test}.json or {train,val,test}.json; kaggle is
            results.csv or captions.txt, divided by split_file; auto detects it.
        image_root: folder of the images; by default, root or its subfolder flickr30k-images, flickr30k_images or
            images.
        splits: comma-separated splits to read; by default, all available ones.
        split_file: split of Kaggle's captions: dataset_flickr30k.json, or a folder with train.txt, val.txt and test.txt
            that name one image a line; by default, the first one in root; without any, images are drawn at random.
        holdout: fraction of the images to draw for val, and again for test, if Kaggle's captions have no split.
        seed: random seed of the draw.
        dense: dense captions: a JSON, JSONL, CSV, TSV or Parquet table with a column `image`; D2S-VSE's JSONL with one
            line per training image; or join, which joins an image's own captions.
    """

    root: str
    layout: Literal["auto", "karpathy", "text", "rows", "kaggle"] = "auto"
    image_root: str | None = None
    splits: str | None = None
    split_file: str | None = None
    holdout: float = 0.1
    seed: int = 0
    dense: str | None = None

    def read(self) -> RawData:
        """The images of each split with their captions.

        Raises:
            UserError: no layout or several layouts are found, a file is malformed, or images and captions do not match.
        """
        raw = RawFolder.open(self.root, self.image_root, self.splits)
        folder, images = raw.path, raw.images

        def name_of(id_: str, split: str) -> str | None:
            return images.by_stem.get(id_.rpartition(".")[0] or id_)

        layouts = {
            "karpathy": karpathy_layout(folder, FLICKR30K_KARPATHY_FILE, images),
            "text": text_layout(
                folder, "{train,dev,test}_caps.txt, _ids.txt and id_mapping.json", images, name_of, raw.splits
            ),
            "rows": rows_layout(folder, "flickr30k", images, raw.splits),
            "kaggle": kaggle_layout(raw, self.split_file, self.holdout, self.seed),
        }
        if self.layout == "auto" and any(layouts[name].find() for name in ("karpathy", "text", "rows")):
            del layouts["kaggle"]  # the others have the published split; here, Karpathy's would be read for it alone
        name, entries = read_layout(folder, layouts, self.layout)
        # The text files number images in order of their names, so sorted names are in the order of train_ids.txt.
        ordered = name == "text" or is_sorted([entry.image for entry in entries.get("train", [])])
        settings: dict[str, Any] = {"layout": name}
        if name == "kaggle" and find_kaggle_split(raw, self.split_file) is None:
            settings["holdout"] = self.holdout
        collection = Collection("flickr30k", images.root, entries, FLICKR30K_SIZES, settings, ordered)
        return collection.finish(self.splits, self.dense)
