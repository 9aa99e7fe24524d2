"""Features that others made, brought into the files that training reads.

- a dictionary from image id to a vector (1, D), pickled, as CUSA's authors keep it: `{split}_unicom.npy`
- an array [N, D] in the order of a graph's nodes, as MAGB keeps it: `TextFeature/*.npy`, `ImageFeature/*.npy`
- a tensor [N, 2 D] in that order, the text's half before the image's, as MM-Graph keeps it: `clip_feat.pt`
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from itr.data.features.array_pickle import ArrayStandIn, ArrayUnpickler, read_npy_header
from itr.data.features.stored import FROM_NPY, FeaturePaths, Header
from itr.data.features.writer import FeatureWriter
from itr.data.shards.schema import Shard, Split, data_identity, is_whole
from itr.data.shards.tars import read_tar
from itr.errors import UserError, refusing
from itr.teachers.base import Modality

log = logging.getLogger(__name__)
CHUNK = 256


def read_dictionary(path: Path, trust_pickle: bool) -> dict[int | str, np.ndarray]:
    """The vectors [D] of a dictionary that `np.save` pickled, by image id.

    Raises:
        UserError: it isn't trusted, or is no such dictionary.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    if not trust_pickle:
        raise UserError(
            f"{path} is a pickle, which could run a program. It is read with a whitelist (numpy arrays only); "
            "if you trust whoever made it, add --trust_pickle true"
        )
    try:
        with path.open("rb") as stream:
            shape, dtype = read_npy_header(stream)
            if shape != () or dtype.kind != "O":
                raise ValueError(f"it is an array {list(shape)} of {dtype}")
            found = ArrayUnpickler(stream, encoding="latin1").load()
        found = found.value if isinstance(found, ArrayStandIn) else found
        if not isinstance(found, dict) or not found:
            raise ValueError(f"it holds a {type(found).__name__}, not a dictionary")
        return {_key(key): _vector(value) for key, value in found.items()}
    except Exception as error:  # a damaged or malicious pickle raises anything
        raise UserError(f"{path} is no dictionary of image id to vector: {error}") from None


def _key(key: Any) -> int | str:
    return key if isinstance(key, str) else int(key)


def _vector(value: Any) -> np.ndarray:
    array = np.asarray(value.value if isinstance(value, ArrayStandIn) else value)
    if array.dtype.kind != "f":
        raise ValueError(f"a value has type {array.dtype}")
    return array.reshape(-1)


@dataclass
class Item:
    """An image or caption of the shards.

    Attributes:
        id: its image_id or caption_id.
        name: its image's name in the source.
        source_id: its image's identity in the source, where it has one.
        node: its node, where the source is a graph.
    """

    id: int
    name: str
    source_id: Any
    node: Any


class Dictionary:
    """Vectors by image id."""

    def __init__(self, file: Path, trust_pickle: bool) -> None:
        self.file = file
        self.vectors = read_dictionary(file, trust_pickle)
        widths = {len(vector) for vector in self.vectors.values()}
        if len(widths) != 1:
            raise UserError(
                f"{file}: its vectors have {len(widths)} different widths, from {min(widths)} to {max(widths)}"
            )
        self.width = widths.pop()

    def keys(self, items: list[Item]) -> Sequence[int | str]:
        """The key of each image: by the id in its source, by `image_id`, by name, or else by its place."""
        file, vectors = self.file, self.vectors
        known = {"the id in their source": "source_id", "their image_id": "id", "their name": "name"}
        for what, attribute in known.items():
            found = [getattr(item, attribute) for item in items]
            if all(isinstance(key, (int, str)) for key in found) and vectors.keys() >= set(found):
                log.info("%s: images are found by %s", file, what)
                return found
        numbers = [key for key in vectors if isinstance(key, int)]
        if len(numbers) == len(vectors) == len(items):
            log.warning("%s: ids differ, so its n-th smallest id is taken for the n-th image; check the order", file)
            return sorted(numbers)
        raise UserError(
            f"{file} holds {len(vectors)} vectors (ids such as {next(iter(vectors))!r}), and the shards {len(items)} "
            f"images (image_id {items[0].id}, name {items[0].name!r}): they don't belong together. "
            "Choose other --splits"
        )

    def rows(self, keys: Sequence[Any]) -> np.ndarray:
        """The vectors of some keys [n, D]."""
        return np.stack([self.vectors[key] for key in keys])


class NodeArray:
    """Vectors by node."""

    def __init__(self, file: Path, array: np.ndarray) -> None:
        if array.ndim != 2 or array.dtype.kind != "f":
            raise UserError(
                f"{file} holds {array.dtype} {list(array.shape)}; rows of numbers [nodes, width] are wanted"
            )
        self.file, self.array, self.width = file, array, array.shape[1]

    def keys(self, items: list[Item]) -> Sequence[int]:
        """The node of each item."""
        nodes = [item.node for item in items]
        if not all(map(is_whole, nodes)):
            raise UserError(
                f"{self.file} has a row a node, and {items[0].name!r} of the shards has none; it is for shards of "
                "`itr prepare mag`"
            )
        if max(nodes, default=0) >= len(self.array):
            raise UserError(f"{self.file} has {len(self.array):,} rows, and the shards a node {max(nodes)}: other data")
        if len(set(nodes)) < len(nodes):
            raise UserError(f"{self.file} has one text a node, and the shards have nodes with several captions")
        return nodes

    def rows(self, keys: Sequence[Any]) -> np.ndarray:
        """The vectors of some nodes [n, D]."""
        return np.asarray(self.array[np.asarray(keys)])


def open_vectors(file: Path, modality: Modality, trust_pickle: bool) -> Dictionary | NodeArray:
    """The vectors that a file holds; which of the three kinds it is, it says itself.

    Raises:
        UserError: it is none of them, or a pickle that isn't trusted.
    """
    if not file.is_file():
        raise UserError(f"there is no file {file}")
    if file.suffix == ".pt":
        return NodeArray(file, _half(file, modality))
    with file.open("rb") as stream:
        try:
            _, dtype = read_npy_header(stream)
        except ValueError as error:
            raise UserError(f"{file} is no file of numpy or torch: {error}") from None
    if dtype.kind != "O":
        with refusing(f"{file} can't be read as an array"):
            return NodeArray(file, np.load(file, mmap_mode="r", allow_pickle=False))
    if modality != "image":
        raise UserError(f"{file} is a dictionary of images; give --modality image")
    return Dictionary(file, trust_pickle)


def _half(file: Path, modality: Modality) -> np.ndarray:
    """The text's or the image's half of a tensor [N, 2 D]."""
    with refusing(f"{file} can't be read as a tensor"):
        tensor = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    if not isinstance(tensor, torch.Tensor) or tensor.ndim != 2 or tensor.shape[1] % 2:
        found = list(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise UserError(f"{file} holds {found}; a tensor [nodes, text and image] of one width each is wanted")
    width = tensor.shape[1] // 2
    half = tensor[:, width:] if modality == "image" else tensor[:, :width]
    return half.float().numpy() if half.dtype == torch.bfloat16 else half.numpy()


def import_features(
    file: Path, splits: Mapping[str, Split], out: Path, modality: Modality, trust_pickle: bool, overwrite: bool
) -> None:
    """Write the vectors of `file` as features of the images or captions of splits, by their names.

    An image of a dictionary is found by its id in the source, else by its `image_id`, else by its name, else by its
    place: the authors number images in the order of their lists, so the n-th smallest id then goes to the n-th
    image of the shards. Rows of an array are found by `node`.

    Raises:
        UserError: the file fits none of these, or its vectors differ in width.
    """
    vectors = open_vectors(file, modality, trust_pickle)
    if isinstance(vectors, Dictionary) and len(splits) != 1:
        raise UserError(f"{file} is a dictionary, which has the images of one split; name that one by --splits")
    for name, split in splits.items():
        _import_split(vectors, split, FeaturePaths(out, name, modality), overwrite)


def _import_split(vectors: Dictionary | NodeArray, split: Split, paths: FeaturePaths, overwrite: bool) -> None:
    shards = tqdm(split.shards, desc=f"ids of {paths.split}", unit="shard")
    items = [item for shard in shards for item in _items(shard, paths.modality)]
    keys = vectors.keys(items)
    header = Header(f"{FROM_NPY}{vectors.file}", paths.modality, vectors.width, len(items), data_identity(split))
    with FeatureWriter(paths, header, CHUNK, overwrite) as writer:
        for number in np.flatnonzero(~writer.done):
            start, stop = writer.bounds(int(number))
            rows = torch.from_numpy(vectors.rows(keys[start:stop]).astype(np.float32))
            writer.write(int(number), [item.id for item in items[start:stop]], rows, [])
    if not writer.complete:
        writer.finish()
    print(f"{paths.split}: wrote {header.rows} rows x {header.width} to {paths.rows}")


def _items(shard: Shard, modality: Modality) -> Iterator[Item]:
    for sample in read_tar(shard.place):
        for id_ in sample.caption_ids if modality == "text" else [sample.image_id]:
            yield Item(id_, sample.name, sample.meta.get("source_id"), sample.meta.get("node"))
