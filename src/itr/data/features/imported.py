"""Convert third-party features into the files that training reads.

- a pickled dictionary from image id to an embedding (1, D), as published by CUSA's authors: `{split}_unicom.npy`
- an array [N, D] in the order of a graph's nodes, as in MAGB: `TextFeature/*.npy`, `ImageFeature/*.npy`
- a tensor [N, 2 D] in that order, text half before image half, as in MM-Graph: `clip_feat.pt`
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
from itr.data.features.headers import FROM_NPY, FeaturePaths, Header, described
from itr.data.features.writer import FeatureWriter
from itr.data.shards.schema import Shard, Split, data_identity, is_whole
from itr.data.shards.tars import read_tar
from itr.errors import UserError, refusing, shown
from itr.files.digests import content_mark
from itr.teachers.base import Modality

log = logging.getLogger(__name__)
CHUNK = 256


def read_dictionary(path: Path, trust_pickle: bool) -> dict[int | str, np.ndarray]:
    """Read a dictionary pickled by `np.save`: embeddings [D] by image id.

    Raises:
        UserError: the pickle is not trusted, or is not such a dictionary.
    """
    if not path.is_file():
        raise UserError(f"the file {path} does not exist")
    if not trust_pickle:
        raise UserError(
            f"{path} is a pickle, which could contain code. itr reads it with a whitelist (NumPy arrays only); if you "
            "trust its source, add --trust_pickle true"
        )
    try:
        with path.open("rb") as stream:
            shape, dtype = read_npy_header(stream)
            if shape != () or dtype.kind != "O":
                raise ValueError(f"it contains an array {list(shape)} of {dtype}")
            found = ArrayUnpickler(stream, encoding="latin1").load()
        found = found.value if isinstance(found, ArrayStandIn) else found
        if not isinstance(found, dict) or not found:
            raise ValueError(f"it contains a {type(found).__name__}, not a dictionary")
        return {_key(key): _vector(value) for key, value in found.items()}
    except Exception as error:  # a damaged or malicious pickle can raise any exception
        raise UserError(f"{path} is not a dictionary from image id to embedding: {error}") from None


def _key(key: Any) -> int | str:
    if isinstance(key, str):
        return key
    if isinstance(key, (float, np.floating)) and key == int(key):
        return int(key)  # as pandas has ids
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        return int(key)
    raise ValueError(f"the id {shown(key)} is neither a whole number nor a text")


def _vector(value: Any) -> np.ndarray:
    array = np.asarray(value.value if isinstance(value, ArrayStandIn) else value)
    if array.dtype.kind != "f":
        raise ValueError(f"a value has type {array.dtype}")
    return array.reshape(-1)


@dataclass
class FeatureTarget:
    """An image or caption of the shards that gets a feature.

    Attributes:
        id: its image_id or caption_id.
        name: name of its image in the source.
        source_id: id of its image in the source, if any.
        node: its node, if the source is a graph.
    """

    id: int
    name: str
    source_id: Any
    node: Any


class FeatureDictionary:
    """Embeddings by image id."""

    def __init__(self, file: Path, trust_pickle: bool) -> None:
        self.file = file
        self.vectors = read_dictionary(file, trust_pickle)
        widths = {len(vector) for vector in self.vectors.values()}
        if len(widths) != 1:
            raise UserError(
                f"the embeddings in {file} have {len(widths)} different widths, from {min(widths)} to {max(widths)}; "
                "they must all have the same"
            )
        self.width = widths.pop()
        self.numbers = {int(key): key for key in self.vectors if isinstance(key, str) and key.isdecimal()}

    def keys(self, items: list[FeatureTarget]) -> Sequence[int | str]:
        """The key of each image: its id in the source, its `image_id`, its name, or else found by its position."""
        file, vectors = self.file, self.vectors
        known = {"their id in the source": "source_id", "their image_id": "id", "their name": "name"}
        for what, attribute in known.items():
            found = [getattr(item, attribute) for item in items]
            if all(isinstance(key, (int, str)) for key in found) and vectors.keys() >= set(found):
                log.info("%s: images are matched by %s", file, what)
                return found
            written = [self.numbers[key] for key in found if key in self.numbers]  # ids that are written as texts
            if len(written) == len(found) and len(self.numbers) == len(vectors):
                log.info("%s: images are matched by %s", file, what)
                return written
        numbers = [key for key in vectors if isinstance(key, int)]
        if len(numbers) == len(vectors) == len(items):
            log.warning(
                "the ids in %s are not those of the shards, so its n-th smallest id is assigned to the n-th image; "
                "check that the order is the same",
                file,
            )
            return sorted(numbers)
        raise UserError(
            f"{file} contains {len(vectors)} embeddings (with ids such as {shown(next(iter(vectors)))}), but the "
            f"shards contain {len(items)} other images (such as image_id {items[0].id}, name {shown(items[0].name)}); "
            "check --splits"
        )

    def rows(self, keys: Sequence[Any]) -> np.ndarray:
        """The embeddings of the given keys [n, D]."""
        return np.stack([self.vectors[key] for key in keys])


class NodeArray:
    """Embeddings by node."""

    def __init__(self, file: Path, array: np.ndarray) -> None:
        if array.ndim != 2 or array.dtype.kind != "f":
            raise UserError(
                f"{file} contains {array.dtype} {list(array.shape)}; expected floating-point numbers [nodes, width]"
            )
        self.file, self.array, self.width = file, array, array.shape[1]

    def keys(self, items: list[FeatureTarget]) -> Sequence[int]:
        """The node of each item."""
        nodes = [item.node for item in items]
        if not all(map(is_whole, nodes)):
            raise UserError(
                f"{self.file} has one row per node, but {shown(items[0].name)} of the shards has no node; use it with "
                "shards of `itr prepare mag`"
            )
        if max(nodes, default=0) >= len(self.array):
            raise UserError(
                f"{self.file} has {len(self.array):,} rows, but the shards contain node {max(nodes)}, so they are "
                "different data"
            )
        if len(set(nodes)) < len(nodes):
            raise UserError(f"{self.file} has one text per node, but the shards have nodes with several captions")
        return nodes

    def rows(self, keys: Sequence[Any]) -> np.ndarray:
        """The embeddings of the given nodes [n, D]."""
        return np.asarray(self.array[np.asarray(keys)])


def open_vectors(file: Path, modality: Modality, trust_pickle: bool) -> FeatureDictionary | NodeArray:
    """Open a file of embeddings, of any of the three kinds.

    Raises:
        UserError: the file has a different format, or is a pickle that is not trusted.
    """
    if not file.is_file():
        raise UserError(f"the file {file} does not exist")
    if file.suffix == ".pt":
        return NodeArray(file, _half(file, modality))
    with file.open("rb") as stream:
        try:
            _, dtype = read_npy_header(stream)
        except ValueError as error:
            raise UserError(f"{file} is not a NumPy or torch file: {error}") from None
    if dtype.kind != "O":
        with refusing(f"could not read {file} as an array"):
            return NodeArray(file, np.load(file, mmap_mode="r", allow_pickle=False))
    if modality != "image":
        raise UserError(f"{file} is a dictionary of image embeddings; give --modality image")
    return FeatureDictionary(file, trust_pickle)


def _half(file: Path, modality: Modality) -> np.ndarray:
    """The text half or image half of a tensor [N, 2 D]."""
    with refusing(f"could not read {file} as a tensor"):
        tensor = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    if not isinstance(tensor, torch.Tensor) or tensor.ndim != 2 or tensor.shape[1] % 2:
        found = list(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise UserError(
            f"{file} contains {found}; expected a tensor [nodes, text and image], with the same width for both"
        )
    width = tensor.shape[1] // 2
    half = tensor[:, width:] if modality == "image" else tensor[:, :width]
    return half.float().numpy() if half.dtype == torch.bfloat16 else half.numpy()


def import_features(
    file: Path, splits: Mapping[str, Split], out: Path, modality: Modality, trust_pickle: bool, overwrite: bool
) -> None:
    """Write the embeddings in `file` as features of the images or captions of the given splits.

    Images of a dictionary are matched by their id in the source, or by `image_id`, or by name, or else by position:
    CUSA's authors number images in the order of their lists, so the n-th smallest id belongs to the n-th image of the
    shards. Rows of an array are matched by `node`.

    Raises:
        UserError: the embeddings could not be matched, or their widths differ.
    """
    vectors = open_vectors(file, modality, trust_pickle)
    if isinstance(vectors, FeatureDictionary) and len(splits) != 1:
        raise UserError(f"{file} is a dictionary, which covers one split; give that split with --splits")
    for name, split in splits.items():
        _import_split(vectors, split, FeaturePaths(out, name, modality), overwrite)


def _import_split(vectors: FeatureDictionary | NodeArray, split: Split, paths: FeaturePaths, overwrite: bool) -> None:
    shards = tqdm(split.shards, desc=f"reading ids of {paths.split}", unit="shard", disable=None)
    items = [item for shard in shards for item in _items(shard, paths.modality)]
    keys = vectors.keys(items)
    header = Header(f"{FROM_NPY}{vectors.file}", paths.modality, vectors.width, len(items), data_identity(split))
    with FeatureWriter(paths, header, CHUNK, overwrite) as writer:
        for number in np.flatnonzero(~writer.done):
            start, stop = writer.bounds(int(number))
            rows = torch.from_numpy(vectors.rows(keys[start:stop]).astype(np.float32))
            marks = [content_mark(str(key).encode()) for key in keys[start:stop]]
            writer.write(int(number), [item.id for item in items[start:stop]], rows, marks, [])
    if not writer.complete:
        writer.finish()
    print(f"{paths.split}: wrote {described(paths)} to {paths.rows}")


def _items(shard: Shard, modality: Modality) -> Iterator[FeatureTarget]:
    for sample in read_tar(shard.place):
        for id_ in sample.caption_ids if modality == "text" else [sample.image_id]:
            yield FeatureTarget(id_, sample.name, sample.meta.get("source_id"), sample.meta.get("node"))
