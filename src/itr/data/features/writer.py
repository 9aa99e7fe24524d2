"""Writing features chunk by chunk into files of their final size, by several processes that may be killed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from torch import Tensor

from itr.data.features.headers import DTYPE, FeaturePaths, Header
from itr.errors import UserError
from itr.files.parts import PartFile, reserve
from itr.files.passes import Pass
from itr.files.writing import whole_file, whole_path

FLUSH_EVERY = 64  # chunks that a killed process may have to do again


class FeatureWriter(Pass):
    """A pass that writes the features of one split and modality.

    Row r belongs to item r, counted over all shards; at the end the rows are sorted by id. Chunks are fixed ranges of
    rows, so the bytes depend neither on the number of processes nor on interruptions. A file with one byte per chunk
    records which are done; the byte is written after the rows are on disk.

    Items with the same id, as img2dataset's samples of one image have, get one row. They must be the same.

    Args:
        paths: where to write.
        header: what to write.
        chunk: rows per chunk.
        overwrite: remove earlier features.
    """

    def __init__(self, paths: FeaturePaths, header: Header, chunk: int, overwrite: bool = False) -> None:
        self.paths, self.header, self.chunk = paths, header, chunk
        self.part_rows, self.part_ids = paths.path(".npy.part"), paths.path("_ids.npy.part")
        self.part_done, self.part_marks = paths.path(".done.part"), paths.path("_marks.npy.part")
        self.pending: list[int] = []
        self.seen: dict[int, int] = {}  # mark of each id that this process has written
        results = [paths.rows, paths.ids]
        begun = paths.path(".json.part")
        facts = asdict(header)
        del facts["repeated"]  # known at the end
        super().__init__(paths.header, begun, results, facts, -(-header.rows // chunk), overwrite)

    def bounds(self, number: int) -> tuple[int, int]:
        """First row of a chunk, and the row after its last one."""
        return number * self.chunk, min((number + 1) * self.chunk, self.header.rows)

    def write(self, number: int, ids: list[int], rows: Tensor, marks: list[int], unknown: list[int]) -> None:
        """Write a chunk.

        Args:
            number: which chunk.
            ids: image_id or caption_id of each row [n].
            rows: features [n, D].
            marks: a hash of what each row is the feature of [n].
            unknown: rows without a feature, which become NaN.

        Raises:
            UserError: a feature is too large for float16, or different items have the same id.
        """
        for id_, mark in zip(ids, marks, strict=True):
            if self.seen.setdefault(id_, mark) != mark:
                self._refuse(id_)
        half = rows.half().numpy()
        if not np.isfinite(half).all():
            raise UserError(
                f"{self.header.teacher} returns {float(rows.abs().max()):.3g}, which is too large for {DTYPE}; "
                "try --precision 32, or another --output or --model"
            )
        half[unknown] = np.nan
        start, stop = self.bounds(number)
        assert half.shape == (len(ids), self.header.width) == (stop - start, self.header.width)
        self._rows.write(start, half)
        self._ids.write(start, np.array(ids, dtype=np.int64))
        self._marks.write(start, np.array(marks, dtype=np.int64))
        self.pending.append(number)
        if len(self.pending) >= FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        """Sync the written rows to disk, then record their chunks as done."""
        if self.pending:
            for rows in (self._rows, self._ids, self._marks):
                rows.file.sync()
            for number in self.pending:
                self._done.write(b"\1", number)
            self._done.sync()
            self.pending = []

    def _parts(self) -> list[Path]:
        return [self.part_done, self.part_rows, self.part_ids, self.part_marks]

    def _begin(self) -> None:
        rows, width = self.header.rows, self.header.width
        parts = (
            (self.part_rows, DTYPE, (rows, width)),
            (self.part_ids, "int64", (rows,)),
            (self.part_marks, "int64", (rows,)),
        )
        for path, dtype, shape in parts:
            np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=shape)
            self._reserve(path)
        self.part_done.write_bytes(bytes(self.num_chunks))

    def _read_done(self) -> np.ndarray:
        if not self.part_marks.exists():  # begun by an earlier version
            self._begin()
        return np.fromfile(self.part_done, dtype=np.uint8, count=self.num_chunks).astype(bool)

    def _open(self) -> None:
        self._rows, self._ids, self._marks = map(Rows, (self.part_rows, self.part_ids, self.part_marks))
        self._done = PartFile(self.part_done)

    def _make_results(self) -> dict[str, Any]:
        # Every step can be repeated after a crash: a part is removed only when its successor is complete.
        if not self.part_ids.exists():  # then both results are complete
            return {"repeated": self.header.rows - len(np.load(self.paths.ids, mmap_mode="r", allow_pickle=False))}
        ids, marks = (np.load(path, allow_pickle=False) for path in (self.part_ids, self.part_marks))
        order = np.argsort(ids, kind="stable")
        again = np.flatnonzero(np.diff(ids[order]) == 0) + 1
        differs = marks[order][again] != marks[order][again - 1]
        if differs.any():
            self._refuse(int(ids[order][again][differs][0]))
        if (np.diff(ids) > 0).all():
            for part, path in ((self.part_rows, self.paths.rows), (self.part_ids, self.paths.ids)):
                if part.exists():
                    part.replace(path)  # on disk since `flush`, which synced it before it recorded the chunk
        else:
            self._sort(ids, np.delete(order, again))
        return {"repeated": len(again)}

    def _refuse(self, id_: int) -> NoReturn:
        what, name = ("captions", "caption_id") if self.paths.modality == "text" else ("images", "image_id")
        raise UserError(
            f"{name} {id_} belongs to different {what}, so all but one of them would be without features. Give every "
            f"image and every caption an id of its own, or remove {name} from the shards"
        )

    def _sort(self, ids: np.ndarray, order: np.ndarray) -> None:
        rows = np.load(self.part_rows, mmap_mode="r", allow_pickle=False)
        with whole_path(self.paths.rows, sync=True) as path:
            target = np.lib.format.open_memmap(path, "w+", dtype=DTYPE, shape=(len(order), rows.shape[1]))
            for start in range(0, len(order), 4096):
                target[start : start + 4096] = rows[order[start : start + 4096]]
            target.flush()
        with whole_file(self.paths.ids, sync=True) as file:
            np.save(file, ids[order], allow_pickle=False)

    def _reserve(self, path: Path) -> None:
        try:
            reserve(path)
        except OSError as error:
            size = path.stat().st_size / 1e9
            path.unlink()
            raise UserError(f"{path.parent} has no room for {size:.1f} GB of features: {error.strerror}") from None


class Rows:
    """Writes rows of a .npy file.

    Args:
        path: the file, of its final size.
    """

    def __init__(self, path: Path) -> None:
        self.file = PartFile(path)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        self._offset, self._stride = int(array.offset), int(array.strides[0])

    def write(self, first: int, rows: np.ndarray) -> None:
        """Write rows of the file's dtype from row `first` on."""
        self.file.write(np.ascontiguousarray(rows).data, self._offset + first * self._stride)
