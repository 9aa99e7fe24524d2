"""`itr prepare flickr30k`: Flickr30K from each of the layouts in which it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from itr.data.raw.entries import RawData
from itr.data.raw.files import find_folder
from itr.data.raw.image_folders import ImageFolders
from itr.data.raw.karpathy import karpathy_layout
from itr.data.raw.layouts import SPLITS, Collection, read_layout, split_names
from itr.data.raw.lines import is_ascending, text_layout
from itr.data.raw.rows import rows_layout
from itr.data.sources.base import Source

KARPATHY = "dataset_flickr30k.json"
KNOWN = {"train": 29_000, "val": 1_014, "test": 1_000}


@dataclass
class Flickr30K(Source):
    """Flickr30K, from Karpathy's JSON, the text files of VSE-infinity, LAPS and D2S-VSE, or ALBEF's or CUSA's rows.

    Args:
        root: folder of the caption files; they may also lie in a folder right below it.
        layout: karpathy is dataset_flickr30k.json; text is {train,dev,test}_caps.txt and _ids.txt with id_mapping.json;
            rows is flickr30k_{train,val,test}.json, new_{train,val,test}.json or {train,val,test}.json; auto
            recognises it.
        image_root: folder of the images; by default root, or flickr30k-images or images in it.
        splits: splits to read, with commas between them; by default all that are there.
        dense: dense captions: a JSON, JSONL, CSV or TSV table with a column `image`; D2S-VSE's JSONL with one line a
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
            UserError: no layout or several are found, a file is damaged, or images and captions don't fit.
        """
        folder = find_folder(self.root)
        images = ImageFolders.under(folder, self.image_root)
        wanted = split_names(self.splits) or list(SPLITS)

        def name_of(id_: str, split: str) -> str | None:
            return images.by_stem.get(id_.rpartition(".")[0] or id_)

        layouts = {
            "karpathy": karpathy_layout(folder, KARPATHY, images),
            "text": text_layout(
                folder, "{train,dev,test}_caps.txt, _ids.txt and id_mapping.json", images, name_of, wanted
            ),
            "rows": rows_layout(folder, "flickr30k", images, wanted),
        }
        name, entries = read_layout(folder, layouts, self.layout)
        # The text files number images in the order of their names: ascending names are in the order of train_ids.txt.
        ordered = name == "text" or is_ascending([entry.image for entry in entries.get("train", [])])
        found = Collection("flickr30k", images.root, entries, KNOWN, {"layout": name}, ordered)
        return found.finish(self.splits, self.dense)
