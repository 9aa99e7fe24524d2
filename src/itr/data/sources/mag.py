"""`itr prepare mag`: graphs whose nodes have an image and a text, read as pairs; the edges are ignored.

MAGB (https://arxiv.org/abs/2410.09132) and Ele-fashion of MM-Graph (https://arxiv.org/abs/2406.16321).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from itr.data.raw.entries import ImageEntry, RawData
from itr.data.raw.files import report_examples, require_folder
from itr.data.raw.image_folders import ImageFolders
from itr.data.raw.layouts import Collection
from itr.data.raw.mag_nodes import GraphNode, load_tensors, read_magb, read_mm_graph
from itr.data.sources.base import Source
from itr.errors import UserError

GraphName = Literal["movies", "toys", "grocery", "reddit-s", "reddit-m", "ele-fashion"]
FILE_STEMS = {
    "movies": "Movies",
    "toys": "Toys",
    "grocery": "Grocery",
    "reddit-s": "RedditS",
    "reddit-m": "RedditM",
}
NODE_COUNTS = {"movies": 16_672, "toys": 20_695, "grocery": 17_074, "reddit-s": 15_894, "ele-fashion": 97_766}
SPLIT_KEYS = {"train": "train_idx", "val": "val_idx", "test": "test_idx"}


@dataclass
class Mag(Source):
    """A multimodal attributed graph as pairs: Movies, Toys, Grocery, Reddit-S, Reddit-M, or Ele-fashion.

    A node is one image and one text. To rank all nodes, as the closest published protocol does, write them to a
    separate folder with --split all, and test with --data.root THAT --data.test_split all. This includes training
    nodes, so don't report it as a held-out test.

    Args:
        root: folder of the data set (Movies.csv and MoviesImages; ele-fashion-raw-text.jsonl and node_mapping.pt), or
            its parent folder.
        name: which data set.
        texts: column of the text: text, title or description; by default text, or caption for Reddit.
        dense_column: column to use as the dense caption, such as text with --texts title.
        split: random is 60/20/20 of all nodes by a permutation; own is the data set's split.pt; all puts every node
            into one split `all`; auto is own for Ele-fashion and random for the others, which have no split.pt.
        split_seed: random seed of the random split; 42 is MAGB's.
        image_root: folder of the images, named ID.jpg, or ASIN.jpg for Ele-fashion; by default MoviesImages,
            ele-fashion-images, the same below MoviesImages_extracted, or images.
        titles: Ele-fashion's texts: a JSON, JSONL, CSV, TSV or Parquet table with asin and raw_text or title; by
            default ele-fashion-raw-text.jsonl.
        dense: dense captions: a JSON, JSONL, CSV, TSV or Parquet table with a column `image` that holds ids, or join.
    """

    root: str
    name: GraphName
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
            raise UserError("pass --dense or --dense_column, not both")
        top = require_folder(self.root)
        if self.name == "ele-fashion":
            if self.texts or self.dense_column:
                raise UserError("ele-fashion has one text per node; remove --texts and --dense_column")
            folder, nodes = read_mm_graph(top, self.name, self.titles)
        else:
            folder, nodes = read_magb(top, FILE_STEMS[self.name], self.texts, self.dense_column)
        if len(nodes) != NODE_COUNTS.get(self.name, len(nodes)):
            print(f"NOTE: {self.name} has {len(nodes):,} nodes; the published data set has {NODE_COUNTS[self.name]:,}")
        kind = self.split if self.split != "auto" else "own" if self.name == "ele-fashion" else "random"
        parts = split_nodes(nodes, kind, folder, self.split_seed)
        images = _find_images(folder, FILE_STEMS.get(self.name, self.name), self.image_root)
        entries = _entries(nodes, parts, images)
        settings = {"name": self.name, "texts": self.texts or "default", "split": kind, "split_seed": self.split_seed}
        if self.dense_column:
            settings["dense"] = f"column {self.dense_column}"
        return Collection(f"mag {self.name}", images.root, entries, settings=settings).finish(None, self.dense)


def split_nodes(nodes: list[GraphNode], kind: str, folder: Path, seed: int) -> dict[str, list[int]]:
    """The indices into `nodes` of each split, in ascending order.

    Raises:
        UserError: the data set's own split file does not exist or is malformed.
    """
    if kind == "all":
        print(f"writing all {len(nodes):,} nodes, including training nodes, to one split `all`")
        return {"all": list(range(len(nodes)))}
    if kind == "random":
        order = np.random.RandomState(seed).permutation(len(nodes))  # NumPy's legacy generator, which MAGB uses
        first, second = int(len(nodes) * 0.6), int(len(nodes) * 0.6) + int(len(nodes) * 0.2)
        print(f"split: 60/20/20 of {len(nodes):,} nodes, by NumPy's permutation with seed {seed}")
        drawn = zip(SPLIT_KEYS, np.split(order, [first, second]), strict=True)
        return {split: sorted(part.tolist()) for split, part in drawn}
    return _read_own_split(folder / "split.pt", {node.number: index for index, node in enumerate(nodes)})


def _read_own_split(path: Path, indices: dict[int, int]) -> dict[str, list[int]]:
    raw = load_tensors(path, "the data set's own split; use --split random to draw one")
    if not isinstance(raw, dict) or not set(SPLIT_KEYS.values()) <= raw.keys():
        raise UserError(f"{path} must be a dictionary with {', '.join(SPLIT_KEYS.values())}")
    numbers = {split: sorted(map(int, raw[key])) for split, key in SPLIT_KEYS.items()}
    listed = [number for found in numbers.values() for number in found]
    if len(set(listed)) < len(listed):
        raise UserError(f"{path} has {len(listed) - len(set(listed)):,} nodes more than once; splits must not overlap")
    report_examples(f"{path.name}: skipped nodes that are not in the data set", sorted(set(listed) - indices.keys()))
    report_examples(f"{path.name}: skipped nodes that are in no split", sorted(indices.keys() - set(listed)))
    print(f"split: the data set's own, {path}")
    return {split: [indices[number] for number in found if number in indices] for split, found in numbers.items()}


def _find_images(folder: Path, stem: str, image_root: str | None) -> ImageFolders:
    name = f"{stem}Images" if stem in FILE_STEMS.values() else f"{stem}-images"
    candidates = [name, f"{name}_extracted/{name}", f"{name}_extracted", "images"]
    root = Path(image_root).expanduser() if image_root else folder
    images = ImageFolders(root, ["", *candidates] if image_root else candidates)
    if not images.paths:
        where = "" if image_root else f" in {', '.join(candidates)}"
        raise UserError(f"{root} has no images{where}; pass the folder of the images as --image_root")
    return images


def _entries(nodes: list[GraphNode], parts: dict[str, list[int]], images: ImageFolders) -> dict[str, list[ImageEntry]]:
    entries: dict[str, list[ImageEntry]] = {}
    no_image, no_text = [], []
    for split, indices in parts.items():
        for node in map(nodes.__getitem__, indices):
            image = images.by_stem.get(node.key)
            if not node.text:
                no_text.append(node.key)
            elif image is None:
                no_image.append(node.key)
            else:
                meta = {"node": node.number, **node.meta}
                entries.setdefault(split, []).append(ImageEntry(image, [node.text], node.dense, meta))
    report_examples("skipped nodes without an image", no_image)
    report_examples("skipped nodes without a text", no_text)
    return entries
