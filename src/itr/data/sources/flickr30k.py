"""`itr prepare flickr30k`: Flickr30K from any of its common file layouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from itr.data.raw.entries import RawData
from itr.data.raw.files import require_folder
from itr.data.raw.image_folders import ImageFolders
from itr.data.raw.karpathy import karpathy_layout
from itr.data.raw.layouts import SPLITS, Collection, parse_split_names, read_layout
from itr.data.raw.lines import is_sorted, text_layout
from itr.data.raw.rows import rows_layout
from itr.data.sources.base import Source

FLICKR30K_KARPATHY_FILE = "dataset_flickr30k.json"
FLICKR30K_SIZES = {"train": 29_000, "val": 1_014, "test": 1_000}


@dataclass
class Flickr30K(Source):
    """Flickr30K, from Karpathy's JSON, the text files of VSE-infinity, LAPS and D2S-VSE, or ALBEF's or CUSA's rows.

    Args:
        root: folder of the captions files, or its parent folder.
        layout: karpathy is dataset_flickr30k.json; text is {train,dev,test}_caps.txt and _ids.txt with id_mapping.json;
            rows is flickr30k_{train,val,test}.json, new_{train,val,test}.json or {train,val,test}.json; auto
            detects it.
        image_root: folder of the images; by default, root or its subfolder flickr30k-images or images.
        splits: comma-separated splits to read; by default, all available ones.
        dense: dense captions: a JSON, JSONL, CSV or TSV table with a column `image`; D2S-VSE's JSONL with one line per
            training image; or join, which joins an image's own captions.
    """

    root: str
    layout: Literal["auto", "karpathy", "text", "rows"] = "auto"
    image_root: str | None = None
    splits: str | None = None
    dense: str | None = None

    def read(self) -> RawData:
        """The images of each split with their captions.

        Raises:
            UserError: no layout or several layouts are found, a file is malformed, or images and captions do not match.
        """
        folder = require_folder(self.root)
        images = ImageFolders.under(folder, self.image_root)
        requested = parse_split_names(self.splits) or list(SPLITS)

        def name_of(id_: str, split: str) -> str | None:
            return images.by_stem.get(id_.rpartition(".")[0] or id_)

        layouts = {
            "karpathy": karpathy_layout(folder, FLICKR30K_KARPATHY_FILE, images),
            "text": text_layout(
                folder, "{train,dev,test}_caps.txt, _ids.txt and id_mapping.json", images, name_of, requested
            ),
            "rows": rows_layout(folder, "flickr30k", images, requested),
        }
        name, entries = read_layout(folder, layouts, self.layout)
        # The text files number images in order of their names, so sorted names are in the order of train_ids.txt.
        ordered = name == "text" or is_sorted([entry.image for entry in entries.get("train", [])])
        collection = Collection("flickr30k", images.root, entries, FLICKR30K_SIZES, {"layout": name}, ordered)
        return collection.finish(self.splits, self.dense)
