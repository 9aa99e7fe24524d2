"""Checkpoints on disk: written completely or not at all, and read only if they are intact."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from itr.errors import UserError
from itr.files.archives import fault
from itr.files.writing import whole_file

PART = ".part"  # ends the name of a file that is being written


def write(checkpoint: Mapping[str, Any], path: Path, keep_as: str = "") -> None:
    """Write a checkpoint, complete and on the disk or not at all.

    Args:
        checkpoint: its contents.
        path: the file.
        keep_as: name in the same folder for an earlier file; empty to remove it.

    Raises:
        OSError: it could not be written; an earlier file is unchanged.
    """
    earlier = path.with_name(keep_as) if keep_as else None
    with whole_file(path, PART, sync=True, keep_as=earlier) as file:
        writer: Any = _Writer(file)
        torch.save(checkpoint, writer)


class _Writer(io.RawIOBase):
    """A file that keeps its first error: torch.save would turn it into one without the reason."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                return int(self._file.write(data))
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        if self.error is not None:
            raise self.error
        self._file.flush()


def read(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint, with its tensors still on disk. No code in it is run.

    Raises:
        UserError: it is damaged, or not an itr checkpoint.
    """
    try:
        saved: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        if not isinstance(saved["hyper_parameters"], dict) or not isinstance(saved["state_dict"], dict):
            raise TypeError("it has no hyper_parameters and weights")
        return saved
    except Exception as error:  # readers of archives and pickles raise a dozen unrelated types
        raise UserError(f"could not read {path} as an itr checkpoint: {fault(path) or error}") from None


def newest(paths: Iterable[Path]) -> tuple[Path, int] | None:
    """The intact checkpoint with the highest step, and its step; preferably one without accumulated gradients.

    Of several checkpoints of a step, the one written last.
    """
    found: list[tuple[bool, int, float, Path]] = []
    for path in paths:
        if fault(path):
            continue
        with contextlib.suppress(UserError, KeyError, TypeError, ValueError, OSError):
            saved = read(path)
            loses_gradients = bool(saved.get("between_steps"))
            found.append((not loses_gradients, int(saved["global_step"]), path.stat().st_mtime, path))
    if not found:
        return None
    _, step, _, path = max(found)
    return path, step
