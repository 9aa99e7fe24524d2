"""Read the tensors of a TorchScript archive, such as OpenAI's `ViT-B-32.pt`, without running the code in it.

`torch.jit.load` compiles and may run the program that such an archive contains, which is not safe for a file of unknown
origin. Its parameters are in a pickle beside the program, which is read here with a whitelist.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DEEPEST = 100  # modules within modules

_TYPES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


class ScriptModule(dict[str, Any]):
    """The attributes of a module of the archive by name; stand-in for every class that the archive defines."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.update(state)


class _Other:
    """Stand-in for everything that is neither a module nor a tensor."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def is_script_archive(path: Path) -> bool:
    """Whether a file is a TorchScript archive; other zip files of torch have no program."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())


def read_script_archive(path: Path) -> dict[str, Tensor]:
    """All tensors of the modules in a TorchScript archive by dotted name: parameters, buffers, other attributes.

    Raises:
        Exception: of almost any type, if the archive is damaged or crafted.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/constants.pkl")).partition("/")[0]
        byte_order = f"{root}/byteorder"
        if byte_order in archive.namelist() and _stored(archive, byte_order).strip() != b"little":
            raise pickle.UnpicklingError("its numbers are big-endian")
        with archive.open(f"{root}/data.pkl") as stream:
            return dict(_tensors(_Unpickler(stream, archive, root).load()))


def _tensors(module: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    if depth > DEEPEST or not isinstance(module, ScriptModule):
        return
    for name, value in module.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        yield from _tensors(value, f"{prefix}{name}.", depth + 1)


class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined,misc]
    """Builds tensors and stand-ins, and rejects all else that a pickle names.

    It extends the pure-Python unpickler, because the C version allocates as many entries as a number in the file says,
    which could exhaust memory.
    """

    def __init__(self, stream: Any, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(stream)
        self.archive, self.root = archive, root
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Look up a name: one of the archive's own classes, or one of the few that TorchScript itself writes."""
        if module.partition(".")[0] == "__torch__":
            return ScriptModule
        if module == "torch" and name in _TYPES:
            return name
        known: dict[tuple[str, str], Any] = {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "device"): _Other,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch.jit._pickle":  # typed lists and dictionaries
            return _Other
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which weights do not need")

    def persistent_load(self, reference: Any) -> Tensor:
        """The storage that a tensor refers to, as a flat tensor."""
        kind, type_name, key, _, size = reference
        if kind != "storage":
            raise pickle.UnpicklingError(f"it refers to a {kind}")
        if key not in self.storages:
            data = bytearray(_stored(self.archive, f"{self.root}/data/{key}"))
            dtype = _TYPES[type_name]
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        storage = self.storages[key]
        if storage.dtype != _TYPES[type_name] or len(storage) != size:
            raise pickle.UnpicklingError(f"the size or type of storage {key} differs from what it says")
        return storage


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """An entry of the archive, which is not compressed: so it cannot become larger than the file."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise pickle.UnpicklingError(f"{name} in it is compressed")
    return archive.read(name)


def _rebuilt(storage: Tensor, offset: int, size: Any, stride: Any, *_: object) -> Tensor:
    """A view of a storage; torch checks that it stays within the storage."""
    if math.prod(size) > len(storage):  # with strides of 0 a view could be of any size, and is copied when it is used
        raise pickle.UnpicklingError("a tensor in it is larger than its storage")
    return storage.as_strided(tuple(size), tuple(stride), offset)
