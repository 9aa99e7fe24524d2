"""Dense captions that `itr densify` writes beside the shards, read by image.

SHARDS/<split>/dense.jsonl   {"image_id", "text"}, one line per image, in ascending order of image_id
SHARDS/<split>/dense.json    header: model, settings and identity of the data
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from itr.data.shards.schema import is_whole
from itr.errors import UserError
from itr.files.states import FileState

FORMAT = "itr-dense/1"


class DenseTexts:
    """The dense captions of a split, on disk; it can be pickled, and takes 16 bytes of memory per image.

    Args:
        path: the file of lines.
        ids: image_id of each line, ascending [N], int64.
        offsets: where each line begins [N], int64.
        state: the file when they were read.
    """

    def __init__(self, path: Path, ids: np.ndarray, offsets: np.ndarray, state: FileState) -> None:
        self.path, self.ids, self.offsets, self.state = path, ids, offsets, state

    @classmethod
    def open(cls, folder: str | Path, split: str, identity: str) -> DenseTexts | None:
        """The dense captions of a split; None if there are none.

        Args:
            folder: the shard folder; other shards have no dense captions beside them.
            split: name of the split.
            identity: `data_identity` of its shards.

        Raises:
            UserError: they were made from other shards, or the file is damaged.
        """
        path = Path(folder).expanduser() / split / "dense.jsonl"
        if not path.with_suffix(".json").is_file():
            return None
        try:
            header = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            state = FileState.of(path)
            ids, offsets = _index(path)
            known = header["format"] == FORMAT and len(ids) == header["rows"] and bool((np.diff(ids) > 0).all())
            same = header["data"] == identity
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"could not read {path} ({error}); remove it and run `itr densify` again") from None
        if not known or not same:
            raise UserError(f"{path} was made from other shards; remove it and run `itr densify` again")
        return cls(path, ids, offsets, state)

    def text(self, image_id: int) -> str | None:
        """The dense caption of an image; None if it has none.

        Raises:
            UserError: the file changed since it was opened.
        """
        row = int(np.searchsorted(self.ids, image_id))
        if row == len(self.ids) or self.ids[row] != image_id:
            return None
        self.state.check(self.path, self.path)
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
                raise ValueError(f"line {len(ids) + 1} lacks image_id or text")
            ids.append(row["image_id"])
            offsets.append(at)
            at += len(line)
    return np.array(ids, dtype=np.int64), np.array(offsets, dtype=np.int64)
