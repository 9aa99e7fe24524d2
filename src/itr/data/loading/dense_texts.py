"""Dense captions that were made after the shards, kept beside them and read by image.

SHARDS/<split>/dense.jsonl   {"image_id", "text"}, a line an image, in ascending order of image_id
SHARDS/<split>/dense.json    header: model, settings and the identity of the data
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from itr.data.shards.schema import is_whole
from itr.errors import UserError
from itr.files.writing import whole_file

FORMAT = "itr-dense/1"


class DenseTexts:
    """The dense captions of a split, on disk; it can be pickled, and costs 16 bytes of memory an image.

    Args:
        path: the lines.
        ids: image_id of each line, ascending [N], int64.
        offsets: where each line begins [N], int64.
    """

    def __init__(self, path: Path, ids: np.ndarray, offsets: np.ndarray) -> None:
        self.path, self.ids, self.offsets = path, ids, offsets

    @classmethod
    def open(cls, folder: str | Path, split: str, identity: str) -> DenseTexts | None:
        """The dense captions of a split, None where nobody made any.

        Args:
            folder: the shard folder; shards from elsewhere have none beside them.
            split: name of the split.
            identity: `data_identity` of its shards.

        Raises:
            UserError: they were made of other shards, or the file is damaged.
        """
        path = Path(folder).expanduser() / split / "dense.jsonl"
        if not path.with_suffix(".json").is_file():
            return None
        try:
            header = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            ids, offsets = _index(path)
            known = header["format"] == FORMAT and len(ids) == header["rows"] and bool((np.diff(ids) > 0).all())
            same = header["data"] == identity
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path} can't be read ({error}); remove it and run `itr densify` again") from None
        if not known or not same:
            raise UserError(f"{path} was made of other shards; remove it and run `itr densify` again")
        return cls(path, ids, offsets)

    def text(self, image_id: int) -> str | None:
        """The dense caption of an image, None where it has none."""
        row = int(np.searchsorted(self.ids, image_id))
        if row == len(self.ids) or self.ids[row] != image_id:
            return None
        with self.path.open("rb") as stream:
            stream.seek(int(self.offsets[row]))
            return str(json.loads(stream.readline())["text"])


def _index(path: Path) -> tuple[np.ndarray, np.ndarray]:
    ids: list[int] = []
    offsets, at = [], 0
    with path.open("rb") as stream:
        for line in stream:
            row = json.loads(line)
            if not (is_whole(row["image_id"]) and isinstance(row["text"], str)):
                raise ValueError(f"line {len(ids) + 1} has not image_id and text")
            ids.append(row["image_id"])
            offsets.append(at)
            at += len(line)
    return np.array(ids, dtype=np.int64), np.array(offsets, dtype=np.int64)


class DenseWriter:
    """Dense captions on their way to disk, chunk by chunk, by several processes that may be killed.

    Each process appends a line a chunk to a file of its own; a line that was cut is no line. When all chunks are there,
    whoever comes last puts them in order.

    Args:
        folder: where the split's shards lie.
        header: `model`, `settings` and `data`; what was begun under another is not continued.
        num_chunks: how many chunks there are.
        process: number of this process.
        overwrite: throw away what is there.

    Attributes:
        complete: whether the dense captions are already there.
        done: the chunks that are.
    """

    def __init__(
        self, folder: Path, header: dict[str, Any], num_chunks: int, process: int = 0, overwrite: bool = False
    ) -> None:
        self.folder, self.num_chunks = folder, num_chunks
        self.header = {"format": FORMAT, **header}
        self.part = folder / f"dense.{process}.part"
        with self._locked():
            if overwrite:
                for path in [folder / "dense.json", folder / "dense.jsonl", *self._parts(), self._begun]:
                    path.unlink(missing_ok=True)
            self.complete = self._same(folder / "dense.json", "are there already")
            if not self.complete and not self._same(self._begun, "have been begun"):
                self._write(self._begun, json.dumps(self.header))
        self.done = set(range(num_chunks)) if self.complete else {chunk for chunk, _ in self._lines()}

    @property
    def _begun(self) -> Path:
        return self.folder / "dense.json.begun"

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("dense.*.part"))

    def _same(self, path: Path, state: str) -> bool:
        if not path.is_file():
            return False
        found = json.loads(path.read_text(encoding="utf-8"))
        for name, wanted in self.header.items():
            if found.get(name) != wanted:
                raise UserError(
                    f"dense captions of {self.folder} {state} with {name} {found.get(name)!r}, and now it is "
                    f"{wanted!r}; give --overwrite true to make them anew"
                )
        return True

    def write(self, chunk: int, texts: dict[int, str]) -> None:
        """Keep the dense captions of a chunk, by image_id."""
        line = json.dumps([chunk, list(texts.items())], ensure_ascii=False).encode("utf-8", "replace")
        with self.part.open("ab") as stream:
            if stream.tell():  # a killed process may have left half a line
                stream.write(b"\n")
            stream.write(line + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        self.done.add(chunk)

    def finish(self) -> bool:
        """Put all lines in order if every process is done; whether the dense captions are there now."""
        with self._locked():
            if (self.folder / "dense.json").is_file():
                return True
            found = dict(self._lines())
            if len(found) < self.num_chunks:
                return False
            texts = sorted((int(image_id), text) for pairs in found.values() for image_id, text in pairs)
            lines = (json.dumps({"image_id": i, "text": text}, ensure_ascii=False) + "\n" for i, text in texts)
            self._write(self.folder / "dense.jsonl", "".join(lines))
            self._write(self.folder / "dense.json", json.dumps({**self.header, "rows": len(texts)}, indent=1) + "\n")
            for path in [*self._parts(), self._begun]:
                path.unlink(missing_ok=True)
            return True

    def _lines(self) -> Iterator[tuple[int, list[tuple[int, str]]]]:
        for path in self._parts():
            for line in path.read_bytes().splitlines():
                try:
                    chunk, pairs = json.loads(line)
                except ValueError:
                    continue
                yield int(chunk), pairs

    @staticmethod
    def _write(path: Path, text: str) -> None:
        with whole_file(path) as file:
            file.write(text.encode(errors="replace"))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / ".dense.lock").open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield
