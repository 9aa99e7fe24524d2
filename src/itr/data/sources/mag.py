"""`itr prepare mag`: graphs whose nodes are an image and a text, read as pairs; the edges are left alone.

MAGB (https://arxiv.org/abs/2410.09132) and the Ele-fashion of MM-Graph (https://arxiv.org/abs/2406.16321).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from itr.data.raw.entries import Entry, RawData
from itr.data.raw.files import find_folder, tell
from itr.data.raw.image_folders import ImageFolders
from itr.data.raw.layouts import Collection
from itr.data.raw.mag_nodes import Node, load_plain, mm_graph_nodes, read_magb
from itr.data.sources.base import Source
from itr.errors import UserError

Name = Literal["movies", "toys", "grocery", "reddit-s", "reddit-m", "ele-fashion"]
STEMS = {"movies": "Movies", "toys": "Toys", "grocery": "Grocery", "reddit-s": "RedditS", "reddit-m": "RedditM"}
NODES = {"movies": 16_672, "toys": 20_695, "grocery": 17_074, "reddit-s": 15_894, "ele-fashion": 97_766}
PARTS = {"train": "train_idx", "val": "val_idx", "test": "test_idx"}


@dataclass
class Mag(Source):
    """A multimodal attributed graph as pairs: Movies, Toys, Grocery, Reddit-S, Reddit-M, or Ele-fashion.

    A node is one image and one text. To rank all nodes, as the nearest published protocol does, write them to a
    folder of their own with --split all, and test with --data.root THAT --data.test_split all; training nodes are
    among them, so report it under another name than the held-out test.

    Args:
        root: folder of the set (Movies.csv and MoviesImages; ele-fashion-raw-text.jsonl and node_mapping.pt), or the
            folder above it.
        name: which set.
        texts: column of the text: text, title or description; by default text, for Reddit caption.
        dense_column: column that becomes the dense caption, such as text beside --texts title.
        split: random is 60/20/20 of all nodes by a permutation; own is the set's split.pt; all puts every node into
            one split `all`; auto is own for Ele-fashion and random for the others, which come without one.
        split_seed: of the random split; 42 is MAGB's.
        image_root: folder of the images, ID.jpg or for Ele-fashion ASIN.jpg; by default MoviesImages,
            ele-fashion-images, or the same below MoviesImages_extracted, or images.
        titles: Ele-fashion's texts: a JSON, JSONL, CSV or TSV table with asin and raw_text or title; by default
            ele-fashion-raw-text.jsonl.
        dense: dense captions: a JSON, JSONL, CSV or TSV table with a column `image` that holds ids, or join.
    """

    root: str
    name: Name
    texts: str | None = None
    dense_column: str | None = None
    split: Literal["auto", "random", "own", "all"] = "auto"
    split_seed: int = 42
    image_root: str | None = None
    titles: str | None = None
    dense: str | None = None

    def read(self) -> RawData:
        """The images of each split with their captions.

        Raises:
            UserError: a file is missing or damaged, or a node appears twice.
        """
        if self.dense and self.dense_column:
            raise UserError("give --dense or --dense_column, not both")
        top = find_folder(self.root)
        if self.name == "ele-fashion":
            if self.texts or self.dense_column:
                raise UserError("ele-fashion has one text a node: omit --texts and --dense_column")
            folder, nodes = mm_graph_nodes(top, self.name, self.titles)
        else:
            folder, nodes = read_magb(top, STEMS[self.name], self.texts, self.dense_column)
        if len(nodes) != NODES.get(self.name, len(nodes)):
            print(f"NOTE: {self.name} has {len(nodes):,} nodes here; the published set has {NODES[self.name]:,}")
        kind = self.split if self.split != "auto" else "own" if self.name == "ele-fashion" else "random"
        parts = divide(nodes, kind, folder, self.split_seed)
        images = _images(folder, STEMS.get(self.name, self.name), self.image_root)
        entries = _entries(nodes, parts, images)
        settings = {"name": self.name, "texts": self.texts or "default", "split": kind, "split_seed": self.split_seed}
        if self.dense_column:
            settings["dense"] = f"column {self.dense_column}"
        return Collection(f"mag {self.name}", images.root, entries, settings=settings).finish(None, self.dense)


def divide(nodes: list[Node], kind: str, folder: Path, seed: int) -> dict[str, list[int]]:
    """The places in `nodes` of each split's nodes, ascending.

    Raises:
        UserError: the set's own split is not there, or no division of its nodes.
    """
    if kind == "all":
        print(f"all {len(nodes):,} nodes go into one split `all`, training nodes too")
        return {"all": list(range(len(nodes)))}
    if kind == "random":
        order = np.random.RandomState(seed).permutation(len(nodes))  # numpy's old generator, as MAGB draws it
        first, second = int(len(nodes) * 0.6), int(len(nodes) * 0.6) + int(len(nodes) * 0.2)
        print(f"split: 60/20/20 of {len(nodes):,} nodes by numpy's permutation of seed {seed}")
        drawn = zip(PARTS, np.split(order, [first, second]), strict=True)
        return {split: sorted(part.tolist()) for split, part in drawn}
    return _own_split(folder / "split.pt", {node.number: at for at, node in enumerate(nodes)})


def _own_split(path: Path, places: dict[int, int]) -> dict[str, list[int]]:
    raw = load_plain(path, "the set's own split; --split random draws one")
    if not isinstance(raw, dict) or not set(PARTS.values()) <= raw.keys():
        raise UserError(f"{path} must hold {', '.join(PARTS.values())}")
    numbers = {split: sorted(map(int, raw[key])) for split, key in PARTS.items()}
    every = [number for found in numbers.values() for number in found]
    if len(set(every)) < len(every):
        raise UserError(f"{path} has {len(every) - len(set(every)):,} nodes more than once; a split must not leak")
    tell(f"{path.name}: nodes that the set does not have, left out", sorted(set(every) - places.keys()))
    tell(f"{path.name}: nodes in no split, left out", sorted(places.keys() - set(every)))
    print(f"split: the set's own, {path}")
    return {split: [places[number] for number in found if number in places] for split, found in numbers.items()}


def _images(folder: Path, stem: str, image_root: str | None) -> ImageFolders:
    plain = f"{stem}Images" if stem in STEMS.values() else f"{stem}-images"
    places = [plain, f"{plain}_extracted/{plain}", f"{plain}_extracted", "images"]
    root = Path(image_root).expanduser() if image_root else folder
    images = ImageFolders(root, ["", *places] if image_root else places)
    if not images.paths:
        where = "" if image_root else f" in {', '.join(places)}"
        raise UserError(f"{root} holds no image{where}; give their folder as --image_root")
    return images


def _entries(nodes: list[Node], parts: dict[str, list[int]], images: ImageFolders) -> dict[str, list[Entry]]:
    entries: dict[str, list[Entry]] = {}
    no_image, no_text = [], []
    for split, places in parts.items():
        for node in map(nodes.__getitem__, places):
            image = images.by_stem.get(node.key)
            if not node.text:
                no_text.append(node.key)
            elif image is None:
                no_image.append(node.key)
            else:
                meta = {"node": node.number, **node.meta}
                entries.setdefault(split, []).append(Entry(image, [node.text], node.dense, meta))
    tell("nodes without an image, left out", no_image)
    tell("nodes without a text, left out", no_text)
    return entries
