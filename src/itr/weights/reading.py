"""Read the weights in a file of any usual format, without running code in it."""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from itr.errors import UserError, quoted
from itr.files.archives import check_intact
from itr.weights.script_archive import is_script_archive, read_script_archive

# Under these names training programs store the weights beside the rest; the first that is there is used.
STATE_KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights")
# Tensors that are not weights: sizes in OpenAI's archives, an attribute of its blocks, and the counter of averages.
SIZES = ("input_resolution", "context_length", "vocab_size")
_NOT_WEIGHTS = {*SIZES, "attn_mask", "n_averaged"}
# Packages whose objects lie beside weights in checkpoints: settings, scores, paths. They are skipped, never built.
_HARMLESS = {
    "argparse", "numpy", "pathlib", "collections", "typing", "types", "datetime", "omegaconf", "yacs", "easydict",
    "ml_collections", "lightning", "lightning_fabric", "pytorch_lightning",
}  # fmt: skip
_TYPES = {f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "object", "set", "str", "tuple")}
_ALWAYS = {"argparse.Namespace", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}


@dataclass(frozen=True)
class Weights:
    """The weights in a file.

    Attributes:
        tensors: by name, on the CPU; of a checkpoint in torch's own format they may still be on disk.
        source: the file, for messages.
        from_openai: whether they are in the form of OpenAI's archives, which also hold the sizes of the model.
    """

    tensors: dict[str, Tensor]
    source: str
    from_openai: bool = False


class _Skipped(dict[Any, Any]):
    """Stand-in for an object that is not a tensor."""

    def __new__(cls, *_: object) -> _Skipped:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        pass


def read_weights(path: Path) -> Weights:
    """The weights in a file: safetensors, a state dict or a checkpoint of torch or Lightning, or a TorchScript archive.

    Raises:
        UserError: the file does not exist, has no weights, is damaged, or has objects that could run code.
    """
    with _reading(path):
        if is_script_archive(path):
            found = read_script_archive(path)
        elif path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            found = state_in(_loaded(path), str(path))
    names = {name.rpartition(".")[2] for name in found}
    tensors = {name: value for name, value in found.items() if name.rpartition(".")[2] not in _NOT_WEIGHTS}
    return Weights(tensors, str(path), from_openai=set(SIZES) <= names)


def read_checkpoint(path: Path) -> Any:
    """All that a checkpoint of torch contains, with its tensors still on disk if its format allows that.

    A Namespace is kept; other objects that are neither tensors nor plain values are replaced by stand-ins.

    Raises:
        UserError: the file does not exist, is damaged, or has objects that could run code.
    """
    with _reading(path):
        return _loaded(path, {"argparse.Namespace": argparse.Namespace})


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn errors of readers into messages about the file."""
    if not path.is_file():
        raise UserError(f"the weights file {path} does not exist")
    check_intact(path)
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # archive and pickle readers raise dozens of unrelated types
        raise UserError(_unreadable(path, error)) from error


def _loaded(path: Path, kept: Mapping[str, type] = {}) -> Any:  # noqa: B006  it is only read
    with torch.serialization.safe_globals([(kind, name) for name, kind in {**_stand_ins(path), **kept}.items()]):
        return torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))


def _stand_ins(path: Path) -> dict[str, type]:
    """Stand-ins for harmless objects by name: those that the file refers to, as far as its format lists them."""
    listed = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else ()
    names = _ALWAYS | {name for name in listed if name in _TYPES or name.partition(".")[0] in _HARMLESS}
    return {name: type("Skipped", (_Skipped,), {}) for name in names}


def state_in(saved: Any, source: str) -> dict[str, Tensor]:
    """The state dict in a checkpoint, which may be at the top or under one of the usual keys.

    Args:
        saved: contents of the file.
        source: the file, for the message.

    Raises:
        UserError: it has no tensors by name.
    """
    for _ in range(3):
        if not isinstance(saved, Mapping):
            break
        tensors = {str(name): value for name, value in saved.items() if isinstance(value, Tensor)}
        key = next((key for key in STATE_KEYS if isinstance(saved.get(key), Mapping) and saved[key]), None)
        if key is None:
            if tensors:
                return tensors
            break
        saved = saved[key]
    raise UserError(
        f"{source} has no weights: expected tensors by name, at the top or under {', '.join(STATE_KEYS)}; "
        f"{_described(saved)}"
    )


def _described(saved: Any) -> str:
    if not isinstance(saved, Mapping):
        return f"it contains a {type(saved).__name__}"
    return f"it has {', '.join(str(key)[:50] for key in list(saved)[:8]) or 'nothing'}"


def _unreadable(path: Path, error: Exception) -> str:
    """The message for a file that could not be read; torch's own would advise a switch that runs the file's code."""
    refused = re.search(r"GLOBAL ([\w.]+)|cannot import '?([\w.]+)|Unsupported class ([\w.]+)", str(error))
    if refused:
        name = next(filter(None, refused.groups())).rstrip(".")
        return (
            f"could not read the weights in {path}: it also has an object that could run code ({name[:80]}). "
            "Save the weights alone: torch.save(model.state_dict(), FILE)"
        )
    return f"could not read the weights in {path}: {quoted(error)}"
