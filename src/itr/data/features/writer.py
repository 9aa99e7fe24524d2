"""Writing features by several processes that may be killed: chunk by chunk into files of their final size."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
from torch import Tensor

from itr.data.features.headers import DTYPE, FeaturePaths, Header
from itr.errors import UserError

FLUSH_EVERY = 64  # chunks that a killed process may have to do again


class FeatureWriter:
    """The features of one split and modality on their way to disk.

    Row r belongs to item r of the shards laid end to end; at the end rows are put in the order of their ids. Chunks are
    fixed stretches of rows, so the bytes depend neither on the number of processes nor on interruptions. Which chunks
    are done stands in a file of one byte each, which is written after the rows are on disk.

    Args:
        paths: where to write.
        header: what is to be written; an interrupted run is continued only under an equal one.
        chunk: rows of a chunk.
        overwrite: throw away what is there.

    Attributes:
        complete: whether the features are already there.
        done: which chunks are [number of chunks], bool.
    """

    def __init__(self, paths: FeaturePaths, header: Header, chunk: int, overwrite: bool = False) -> None:
        self.paths, self.header, self.chunk = paths, header, chunk
        self.part_rows, self.part_ids = paths.path(".npy.part"), paths.path("_ids.npy.part")
        self.part_header, self.part_done = paths.path(".json.part"), paths.path(".done.part")
        paths.header.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            if overwrite:
                self._remove()
            self.complete = self._check(paths.header, "are there already")
            if self.complete:
                self._remove_parts()  # left by a run that was killed in its last moment
            elif not self._check(self.part_header, "have been begun"):
                self._allocate()
            self.pending: list[int] = []
            self.done = np.ones(self.num_chunks, dtype=bool)
            if not self.complete:
                self._progress = np.memmap(self.part_done, np.uint8, "r+", shape=(self.num_chunks,))
                self.done = self._progress.astype(bool)
            if not self.done.all():
                self._rows = np.lib.format.open_memmap(self.part_rows, "r+")
                self._ids = np.lib.format.open_memmap(self.part_ids, "r+")

    @property
    def num_chunks(self) -> int:
        """Number of chunks."""
        return -(-self.header.rows // self.chunk)

    def bounds(self, number: int) -> tuple[int, int]:
        """First and last row (excluded) of a chunk."""
        return number * self.chunk, min((number + 1) * self.chunk, self.header.rows)

    def write(self, number: int, ids: list[int], rows: Tensor, unknown: list[int]) -> None:
        """Write a chunk.

        Args:
            number: which.
            ids: image_id or caption_id of each row [n].
            rows: features [n, D].
            unknown: rows without a feature, which become NaN.
        """
        start, stop = self.bounds(number)
        half = rows.half().numpy()
        if not np.isfinite(half).all():
            raise UserError(
                f"{self.header.teacher} gives {float(rows.abs().max()):.3g}, which {DTYPE} can't hold; "
                "try --precision 32, or another --output or --model"
            )
        half[unknown] = np.nan
        self._rows[start:stop], self._ids[start:stop] = half, ids
        self.pending.append(number)
        if len(self.pending) >= FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        """Bring to disk what was written, then say that it is there."""
        if self.pending:
            self._rows.flush()
            self._ids.flush()
            self._progress[self.pending] = 1
            self._progress.flush()
            self.pending = []

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.flush()

    def finish(self) -> bool:
        """Give the files their names if every process is done; whether the features are there now."""
        self.flush()
        with self._locked():
            if self.paths.header.is_file():
                return True
            if not self._progress.all():
                return False
            self._name()
            return True

    def _name(self) -> None:
        # Every step can be done again after a crash: parts go away only when their successor is whole.
        ids = np.load(self.part_ids if self.part_ids.exists() else self.paths.ids, allow_pickle=False)
        order = np.argsort(ids, kind="stable")
        twice = ids[order][1:][np.diff(ids[order]) == 0]
        if len(twice):
            raise UserError(f"the shards hold {self.paths.modality} id {twice[0]} twice; prepare them again")
        if (np.diff(ids) > 0).all():
            for part, path in ((self.part_rows, self.paths.rows), (self.part_ids, self.paths.ids)):
                if part.exists():
                    part.replace(path)
        else:
            self._sort(ids, order)
        self.header.write(self.paths.header)
        self._remove_parts()

    def _sort(self, ids: np.ndarray, order: np.ndarray) -> None:
        rows = np.load(self.part_rows, mmap_mode="r", allow_pickle=False)
        temporary = self.paths.path(".npy.tmp")
        target = np.lib.format.open_memmap(temporary, "w+", dtype=DTYPE, shape=rows.shape)
        for start in range(0, len(order), 4096):
            target[start : start + 4096] = rows[order[start : start + 4096]]
        target.flush()
        temporary.replace(self.paths.rows)
        temporary = self.paths.path("_ids.tmp.npy")
        np.save(temporary, ids[order], allow_pickle=False)
        temporary.replace(self.paths.ids)

    def _check(self, path: Path, state: str) -> bool:
        if not path.is_file():
            return False
        try:
            found = Header.read(path)
        except ValueError as error:
            raise UserError(f"{error}; give --overwrite true to make it anew") from None
        for name in ("format", "modality", "teacher", "weights", "data", "rows", "width", "dtype", "settings"):
            there, wanted = getattr(found, name), getattr(self.header, name)
            if there != wanted:
                raise UserError(
                    f"features {self.paths.rows} {state} with {name} {there!r}, and now it is {wanted!r}; "
                    "choose another --out, or give --overwrite true to make them anew"
                )
        return True

    def _allocate(self) -> None:
        rows, width = self.header.rows, self.header.width
        for path, dtype, shape in ((self.part_rows, DTYPE, (rows, width)), (self.part_ids, "int64", (rows,))):
            path.unlink(missing_ok=True)
            np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=shape)
            _reserve(path)
        self.part_done.write_bytes(bytes(self.num_chunks))
        self.header.write(self.part_header)  # last: it says that the others are there

    def _remove_parts(self) -> None:
        for path in (self.part_header, self.part_done, self.part_rows, self.part_ids):
            path.unlink(missing_ok=True)

    def _remove(self) -> None:
        for path in (self.paths.header, self.paths.rows, self.paths.ids):
            path.unlink(missing_ok=True)
        self._remove_parts()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = self.paths.header.with_name(f".{self.paths.modality}.lock")
        with path.open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def _reserve(path: Path) -> None:
    # A mapped file that finds the disk full later ends the process without a word.
    size = path.stat().st_size
    try:
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, size)
    except OSError as error:
        path.unlink()
        raise UserError(f"{path.parent} has no room for {size / 1e9:.1f} GB of features: {error.strerror}") from None
