"""Files with the outputs of a frozen tower, read by row in the loader's workers.

FOLDER/<split>/image.npy           of each image, one row: [I, W], or [I, T W] for T patches
FOLDER/<split>/image_ids.npy       image_id of each row, ascending
FOLDER/<split>/image_input.npy     a hash of the pixels that the tower saw
FOLDER/<split>/image_file.npy      a hash of each image's file
FOLDER/<split>/text.npy            of each caption one row [C, W], or one a word [L_1 + ... + L_C, W]
FOLDER/<split>/text_ids.npy        caption_id of each caption, ascending
FOLDER/<split>/text_first.npy      where the rows of its words begin, if there are several
FOLDER/<split>/text_count.npy      how many these are
FOLDER/<split>/text_input.npy      a hash of the tokens that the tower saw
FOLDER/<split>/text_file.npy       a hash of the caption
FOLDER/<split>/<side>.json         header, which names tower, preprocessing and data by their hashes
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itr.data.features.headers import FeaturePaths, Header
from itr.errors import UserError
from itr.files.states import FileState
from itr.types import Tokens


class TowerOutputs:
    """The outputs for one side of a split. It can be pickled: each worker maps the files itself.

    Args:
        paths: the files.
        header: their header, whose settings hold the shape of an output.
    """

    def __init__(self, paths: FeaturePaths, header: Header) -> None:
        self.paths, self.header = paths, header
        self.words = bool(header.settings["words"])
        self.patches: int = header.settings["patches"]
        self._states = {path: FileState.of(path) for path in (paths.rows, paths.ids)}
        self.ids, self.inputs, self.files = (self._column(name) for name in ("ids", "input", "file"))
        self.first, self.counts = np.arange(len(self.ids)), np.ones(len(self.ids), dtype=np.int64)
        if self.words:
            self.first, self.counts = self._column("first"), self._column("count")
        self._rows: np.ndarray | None = None

    def images(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The outputs of images [n, W], or [n, T, W] for patches; and what equal images share [n, 1], int64."""
        places = self._places(ids)
        found = torch.from_numpy(self._mapped()[self.first[places]])
        outputs = found.unflatten(1, (self.patches, -1)) if self.patches else found
        return outputs, torch.from_numpy(self.inputs[places])[:, None]

    def missing(self, image_id: int) -> bool:
        """Whether the image could not be decoded, so that it has no output."""
        return bool(np.isnan(self._mapped()[self.first[self._places([image_id])[0]], 0]))

    def contents(self, ids: Sequence[int]) -> list[int]:
        """The hash of each image's file."""
        return [int(value) for value in self.files[self._places(ids)]]

    def texts(self, ids: Sequence[int]) -> tuple[Tensor, Tokens]:
        """The outputs of captions [n, W], or [n, L, W] for words, padded with zeros; and their mask.

        The hash that equal captions share stands in place of their token ids.
        """
        rows, places = self._mapped(), self._places(ids)
        counts = self.counts[places]
        mask = torch.arange(int(counts.max())) < torch.from_numpy(counts)[:, None]
        tokens = Tokens(torch.from_numpy(self.inputs[places])[:, None] * mask, mask)
        if not self.words:
            return torch.from_numpy(rows[self.first[places]]), tokens
        found = np.zeros((*mask.shape, rows.shape[1]), dtype=rows.dtype)
        for row, (first, count) in enumerate(zip(self.first[places], counts, strict=True)):
            found[row, :count] = rows[first : first + count]
        return torch.from_numpy(found), tokens

    def _places(self, ids: Sequence[int]) -> np.ndarray:
        """Where each id is among the ids in the file.

        Raises:
            UserError: it is not there, or a file has changed since the run began.
        """
        for path, state in self._states.items():
            state.check(path, path)
        wanted = np.asarray(ids, dtype=np.int64)
        places = np.minimum(np.searchsorted(self.ids, wanted), len(self.ids) - 1)
        if (unknown := self.ids[places] != wanted).any():
            raise UserError(f"{self.paths.rows} has no row for id {wanted[unknown][0]}; remove it, and start again")
        return places

    def _column(self, name: str) -> np.ndarray:
        found: np.ndarray = np.load(self.paths.column(name), allow_pickle=False)
        return found

    def _mapped(self) -> np.ndarray:
        if self._rows is None:
            self._rows = np.load(self.paths.rows, mmap_mode="r", allow_pickle=False)
        return self._rows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None}
