"""Features that CUSA's authors made: `{split}_unicom.npy`, a pickled dictionary from image id to a vector (1, D)."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from tqdm import tqdm

from itr.data.feature_writer import FeatureWriter
from itr.data.features import FROM_NPY, FeaturePaths, Header, data_identity
from itr.data.schema import Split
from itr.data.tars import read_tar
from itr.errors import UserError

log = logging.getLogger(__name__)
CHUNK = 256


class _Type:
    """Stands for numpy.dtype in a pickle: plain numbers, or objects."""

    def __init__(self, code: str, *_: object) -> None:
        self.dtype: np.dtype[Any] = np.dtype(str(code))
        if self.dtype.kind not in "biufO":
            raise pickle.UnpicklingError(f"it holds values of type {self.dtype}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for an array in a pickle. Numpy's own reading of a crafted state could overwrite memory; this can't."""

    value: Any = None

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, raw = state
        if kind.dtype.kind == "O":
            self.value = raw[0] if shape == () else raw
        else:
            self.value = np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if fortran else "C")


def _from_buffer(raw: Any, kind: _Type, shape: Any, order: Any, *_: object) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, kind, order == "F", raw))
    return array


def _scalar(kind: _Type, raw: bytes) -> Any:
    return np.frombuffer(raw, kind.dtype)[0]


_STAND_INS: dict[tuple[str, str], Any] = {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Type}
for _core in ("numpy.core", "numpy._core"):  # numpy 2 renamed it
    _STAND_INS[f"{_core}.multiarray", "_reconstruct"] = _Array
    _STAND_INS[f"{_core}.multiarray", "scalar"] = _scalar
    _STAND_INS[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class ArrayUnpickler(pickle.Unpickler):
    """Reads arrays and plain containers by means of our own stand-ins, and refuses whatever else a pickle names."""

    def find_class(self, module: str, name: str) -> Any:
        """Look up one of the few names that arrays need."""
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it wants to run {module}.{name}, which no array needs")
        return _STAND_INS[module, name]


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
            _read_header(stream)
            found = ArrayUnpickler(stream, encoding="latin1").load()
        found = found.value if isinstance(found, _Array) else found
        if not isinstance(found, dict) or not found:
            raise ValueError(f"it holds a {type(found).__name__}, not a dictionary")
        return {_key(key): _vector(value) for key, value in found.items()}
    except Exception as error:  # a damaged or malicious pickle raises anything
        raise UserError(f"{path} is no dictionary of image id to vector: {error}") from None


def _read_header(stream: BinaryIO) -> None:
    major, _ = np.lib.format.read_magic(stream)  # type: ignore[no-untyped-call]
    reader: Any = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(stream)
    if shape != () or dtype.kind != "O":
        raise ValueError(f"it is an array {list(shape)} of {dtype}")


def _key(key: Any) -> int | str:
    return key if isinstance(key, str) else int(key)


def _vector(value: Any) -> np.ndarray:
    array = np.asarray(value.value if isinstance(value, _Array) else value)
    if array.dtype.kind != "f":
        raise ValueError(f"a value has type {array.dtype}")
    return array.reshape(-1)


def import_dictionary(file: Path, split: Split, paths: FeaturePaths, trust_pickle: bool, overwrite: bool) -> None:
    """Write the vectors of `file` as features of the pictures of a split.

    A picture is found by its `image_id`, else by its name in the source, else by its place: the authors number
    pictures in the order of their lists, so the n-th smallest id then goes to the n-th picture of the shards.

    Raises:
        UserError: the file fits none of these, or its vectors differ in width.
    """
    vectors = read_dictionary(file, trust_pickle)
    widths = {len(vector) for vector in vectors.values()}
    if len(widths) != 1:
        raise UserError(f"{file}: its vectors have {len(widths)} different widths, from {min(widths)} to {max(widths)}")
    pictures = [
        (sample.image_id, sample.name)
        for shard in tqdm(split.shards, desc=f"ids of {paths.split}", unit="shard")
        for sample in read_tar(shard.place)
    ]
    keys = _keys(file, vectors, pictures)
    header = Header(f"{FROM_NPY}{file}", "image", widths.pop(), len(pictures), data_identity(split))
    with FeatureWriter(paths, header, CHUNK, overwrite) as writer:
        for number in np.flatnonzero(~writer.done):
            start, stop = writer.bounds(int(number))
            rows = torch.from_numpy(np.stack([vectors[key] for key in keys[start:stop]]).astype(np.float32))
            writer.write(int(number), [image_id for image_id, _ in pictures[start:stop]], rows, [])
    if not writer.complete:
        writer.finish()
    print(f"{paths.split}: wrote {header.rows} rows x {header.width} to {paths.rows}")


def _keys(
    file: Path, vectors: dict[int | str, np.ndarray], pictures: list[tuple[int, str]]
) -> list[int] | list[str] | list[int | str]:
    """The key of each picture."""
    by_id, by_name = [image_id for image_id, _ in pictures], [name for _, name in pictures]
    if vectors.keys() >= set(by_id):
        log.info("%s: pictures are found by their image_id", file)
        return by_id
    if vectors.keys() >= set(by_name):
        log.info("%s: pictures are found by their name", file)
        return by_name
    numbers = [key for key in vectors if isinstance(key, int)]
    if len(numbers) == len(vectors) == len(pictures):
        log.warning("%s: ids differ, so its n-th smallest id is taken for the n-th picture; check the order", file)
        return sorted(numbers)
    raise UserError(
        f"{file} holds {len(vectors)} vectors (ids such as {next(iter(vectors))!r}), and the shards {len(pictures)} "
        f"pictures (image_id {by_id[0]}, name {by_name[0]!r}): they don't belong together. Choose other --splits"
    )
