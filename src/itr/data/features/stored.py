"""Features of a frozen uni-modal teacher, computed once by `itr features` and read by row during training.

DIR/<split>/<image|text|dense>.npy       the features [N, D], float16
DIR/<split>/<image|text|dense>_ids.npy   image_id or caption_id of each row, ascending [N], int64
DIR/<split>/<image|text|dense>.json      header: teacher, width, type, rows and the identity of the data

Features of dense captions have the image_id of their image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itr.data.features.headers import DTYPE, FORMAT, FeaturePaths, Header, features_command
from itr.data.loading.fields import Field
from itr.data.shards.schema import Sample
from itr.errors import UserError
from itr.files.states import FileState
from itr.teachers.base import Modality


class FeatureFile:
    """The features of one split and modality, memory-mapped when first read.

    It can be pickled: each loader worker maps the file itself, so all of them share its pages.
    """

    def __init__(self, paths: FeaturePaths, header: Header, data: Path | str = "SHARDS") -> None:
        self.paths, self.header, self.data = paths, header, data
        self._arrays: tuple[np.ndarray, np.ndarray] | None = None
        self._states = {path: FileState.of(path) for path in (paths.rows, paths.ids)}

    @classmethod
    def open(
        cls, folder: Path | str, split: str, modality: Modality, identity: str, data: Path | str = "SHARDS"
    ) -> FeatureFile:
        """Check the features of a split.

        Args:
            folder: output folder of `itr features`.
            split: name of the split.
            modality: `image`, `text` or `dense`.
            identity: `data_identity` of the training split.
            data: folder of its shards, for messages.

        Raises:
            UserError: the file is missing, damaged or of other data; the message contains the command to create it.
        """
        paths = FeaturePaths(Path(folder), split, modality)
        if not paths.header.is_file():
            state = "is not finished" if paths.path(".json.part").is_file() else "does not exist"
            command = features_command(data, split, modality, folder)
            raise UserError(
                f"a method needs {modality} features, but {paths.rows} {state}; compute them with:\n{command}"
            )
        header = None
        try:
            header = Header.read(paths.header)
            opened = cls(paths, header, data)
            opened._check(identity)
        except (
            Exception
        ) as error:  # NumPy parses the header as Python code, so a damaged one can raise any parser error
            command = features_command(data, split, modality, folder, header)
            command += "" if header else " --overwrite true"
            raise UserError(
                f"the {modality} features are not usable: {error}; compute them again with:\n{command}"
            ) from None
        return opened

    def _check(self, identity: str) -> None:
        header, paths = self.header, self.paths
        wanted = {"format": FORMAT, "dtype": DTYPE, "modality": paths.modality, "data": identity}
        for name, value in wanted.items():
            found = getattr(header, name)
            if found != value:
                hint = "; it was made from other shards" if name == "data" else ""
                raise ValueError(f"{paths.header} has {name} {found!r}, but expected {value!r}{hint}")
        rows, ids = self.arrays
        for path, array, dtype, shape in (
            (paths.rows, rows, DTYPE, (header.rows - header.repeated, header.width)),
            (paths.ids, ids, "int64", (header.rows - header.repeated,)),
        ):
            if array.dtype != dtype or array.shape != shape:
                found = f"{array.dtype} {list(array.shape)}"
                raise ValueError(f"{path} contains {found}, but its header says {dtype} {list(shape)}")
        if header.rows and not (np.diff(ids) > 0).all():
            raise ValueError(f"{paths.ids} is not in ascending order")

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Features [N, D], float16, and ids [N], int64, both on disk."""
        if self._arrays is None:
            rows = np.load(self.paths.rows, mmap_mode="r", allow_pickle=False)
            self._arrays = rows, np.load(self.paths.ids, mmap_mode="r", allow_pickle=False)
        return self._arrays

    def rows(self, ids: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """The features of `ids` [n], in their order [n, D], float16.

        Raises:
            UserError: an id has no feature, or a file changed since the run began.
        """
        for path, state in self._states.items():
            state.check(path, path)
        rows, known = self.arrays
        wanted = np.asarray(ids, dtype=np.int64)
        positions = np.searchsorted(known, wanted)
        found = known[np.minimum(positions, len(known) - 1)] == wanted if len(known) else np.zeros(len(wanted), bool)
        if not found.all():
            name = "caption_id" if self.paths.modality == "text" else "image_id"
            raise UserError(f"{self.paths.rows} has no row for {name} {wanted[~found][0]}; {self._again()}")
        selected = rows[positions]
        if np.isnan(selected[:, 0]).any():  # `itr features` could not decode the image
            missing = wanted[np.isnan(selected[:, 0])][0]
            raise UserError(
                f"{self.paths.rows} has no feature of image {missing}, because the image could not be decoded; repair "
                f"it and {self._again()}"
            )
        return torch.from_numpy(np.ascontiguousarray(selected))

    def command(self) -> str:
        """The command that computes this file again."""
        paths = self.paths
        return features_command(self.data, paths.split, paths.modality, paths.folder, self.header)

    def _again(self) -> str:
        return f"compute the features again with:\n{self.command()}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": None}


class TeacherFeatures(Field):
    """A teacher's feature of each row, float16.

    `teacher_image` and `teacher_dense` (for the image's dense caption) have one row per image [I, D], `teacher_text`
    has one row per caption [C, D].
    """

    def __init__(self, file: FeatureFile) -> None:
        self.file = file
        self.of = "text" if file.paths.modality == "text" else "image"
        self.name = f"teacher_{file.paths.modality}"

    def read(self, samples: Sequence[Sample], captions: Sequence[int]) -> Tensor:
        """Read the rows of the batch from disk."""
        if self.of == "image":
            return self.file.rows([sample.image_id for sample in samples])
        return self.file.rows([s.caption_ids[caption] for s, caption in zip(samples, captions, strict=True)])
