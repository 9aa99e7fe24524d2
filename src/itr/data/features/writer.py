"""Writing features chunk by chunk into files of their final size, by several processes that may be killed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from itr.data.features.headers import FeaturePaths, Header
from itr.errors import UserError
from itr.files.parts import PartFile, reserve
from itr.files.passes import Pass
from itr.files.writing import whole_path

REMEDY = "try --precision 32, or another --output or --model"
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
        chunk: items per chunk.
        overwrite: remove earlier features.
        lengths: rows of each item [N]; the columns `first` and `count` then say where they are, and the rows stay in
            their order. None for one row each.
        columns: further numbers of each item to keep, by name.
        remedy: what helps if a feature is too large, for messages.
    """

    def __init__(
        self,
        paths: FeaturePaths,
        header: Header,
        chunk: int,
        overwrite: bool = False,
        lengths: np.ndarray | None = None,
        columns: Sequence[str] = (),
        remedy: str = REMEDY,
    ) -> None:
        self.paths, self.header, self.chunk, self.remedy = paths, header, chunk, remedy
        self.starts = None if lengths is None else np.concatenate([[0], np.cumsum(lengths)])
        self.items = header.rows if lengths is None else len(lengths)
        self.kept = (*columns, *(() if lengths is None else ("first", "count")), "ids")
        self.part_rows, self.part_done = paths.path(".npy.part"), paths.path(".done.part")
        self.part_columns = {name: paths.path(f"_{name}.npy.part") for name in dict.fromkeys(("marks", *self.kept))}
        self.pending: list[int] = []
        self.seen: dict[int, int] = {}  # mark of each id that this process has written
        results = [paths.rows, *map(paths.column, self.kept)]
        facts = asdict(header)
        del facts["repeated"]  # known at the end
        super().__init__(paths.header, paths.path(".json.part"), results, facts, -(-self.items // chunk), overwrite)

    def bounds(self, number: int) -> tuple[int, int]:
        """First item of a chunk, and the item after its last one."""
        return number * self.chunk, min((number + 1) * self.chunk, self.items)

    def write(
        self, number: int, ids: list[int], rows: Tensor, marks: list[int], unknown: list[int], **columns: list[int]
    ) -> None:
        """Write a chunk.

        Args:
            number: which chunk.
            ids: image_id or caption_id of each item [n].
            rows: features of the items, one after another [n, D].
            marks: a hash of what each is the feature of [n].
            unknown: rows without a feature, which become NaN.
            **columns: the further numbers of each item [n].

        Raises:
            UserError: a feature is too large for the type of the file, or different items have the same id.
        """
        for id_, mark in zip(ids, marks, strict=True):
            if self.seen.setdefault(id_, mark) != mark:
                self._refuse(id_)
        kept = rows.to(getattr(torch, self.header.dtype)).numpy()
        if not np.isfinite(kept).all():
            raise UserError(
                f"{self.header.teacher} returns {float(rows.abs().max()):.3g}, which is too large for "
                f"{self.header.dtype}; {self.remedy}"
            )
        kept[unknown] = np.nan
        start, stop = self.bounds(number)
        places = np.arange(start, stop + 1) if self.starts is None else self.starts[start : stop + 1]
        if self.starts is not None:
            columns |= {"first": places[:-1].tolist(), "count": np.diff(places).tolist()}
        assert len(ids) == stop - start and kept.shape == (places[-1] - places[0], self.header.width)  # noqa: PT018
        self._rows.write(int(places[0]), kept)
        for name, values in {**columns, "ids": ids, "marks": marks}.items():
            self._columns[name].write(start, np.array(values, dtype=np.int64))
        self.pending.append(number)
        if len(self.pending) >= FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        """Sync the written rows to disk, then record their chunks as done."""
        if self.pending:
            for rows in (self._rows, *self._columns.values()):
                rows.file.sync()
            for number in self.pending:
                self._done.write(b"\1", number)
            self._done.sync()
            self.pending = []

    def _parts(self) -> list[Path]:
        return [self.part_done, self.part_rows, *self.part_columns.values()]

    def _begin(self) -> None:
        parts: list[tuple[Path, str, tuple[int, ...]]] = [
            (self.part_rows, self.header.dtype, (self.header.rows, self.header.width)),
            *((path, "int64", (self.items,)) for path in self.part_columns.values()),
        ]
        for path, dtype, shape in parts:
            np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=shape)
            self._reserve(path)
        self.part_done.write_bytes(bytes(self.num_chunks))

    def _read_done(self) -> np.ndarray:
        if not self.part_columns["marks"].exists():  # begun by an earlier version
            self._begin()
        return np.fromfile(self.part_done, dtype=np.uint8, count=self.num_chunks).astype(bool)

    def _open(self) -> None:
        self._rows, self._done = Rows(self.part_rows), PartFile(self.part_done)
        self._columns = {name: Rows(path) for name, path in self.part_columns.items()}

    def _make_results(self) -> dict[str, Any]:
        # Every step can be repeated after a crash: a part is removed only when its successor is complete.
        part_ids = self.part_columns["ids"]  # the last to become a result
        if not part_ids.exists():
            return {"repeated": self.items - len(np.load(self.paths.ids, mmap_mode="r", allow_pickle=False))}
        ids, marks = (np.load(path, allow_pickle=False) for path in (part_ids, self.part_columns["marks"]))
        order = np.argsort(ids, kind="stable")
        again = np.flatnonzero(np.diff(ids[order]) == 0) + 1
        differs = marks[order][again] != marks[order][again - 1]
        if differs.any():
            self._refuse(int(ids[order][again][differs][0]))
        targets = {self.part_columns[name]: self.paths.column(name) for name in self.kept}
        if (np.diff(ids) > 0).all():
            _move({self.part_rows: self.paths.rows, **targets})
        elif self.starts is None:
            _sort({self.part_rows: self.paths.rows, **targets}, np.delete(order, again))
        else:
            _sort(targets, np.delete(order, again))
            _move({self.part_rows: self.paths.rows})
        return {"repeated": len(again)}

    def _refuse(self, id_: int) -> NoReturn:
        what, name = ("captions", "caption_id") if self.paths.modality == "text" else ("images", "image_id")
        raise UserError(
            f"{name} {id_} belongs to different {what}, so all but one of them would be without features. Give every "
            f"image and every caption an id of its own, or remove {name} from the shards"
        )

    def _reserve(self, path: Path) -> None:
        try:
            reserve(path)
        except OSError as error:
            size = path.stat().st_size / 1e9
            path.unlink()
            raise UserError(f"{path.parent} has no room for {size:.1f} GB of features: {error.strerror}") from None


def _move(targets: Mapping[Path, Path]) -> None:
    """Make parts results; they are on disk since `flush`, which synced them before it recorded a chunk."""
    for part, path in targets.items():
        if part.exists():
            part.replace(path)


def _sort(targets: Mapping[Path, Path], order: np.ndarray) -> None:
    """Write the rows of parts in another order, and keep the parts."""
    for part, target in targets.items():
        rows = np.load(part, mmap_mode="r", allow_pickle=False)
        with whole_path(target, sync=True) as path:
            found = np.lib.format.open_memmap(path, "w+", dtype=rows.dtype, shape=(len(order), *rows.shape[1:]))
            for start in range(0, len(order), 4096):
                found[start : start + 4096] = rows[order[start : start + 4096]]
            found.flush()


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
