"""Features of a frozen uni-modal teacher, made once by `itr features` and read by row from disk while training.

DIR/<split>/<image|text|dense>.npy       the features [N, D], float16
DIR/<split>/<image|text|dense>_ids.npy   image_id or caption_id of each row, ascending [N], int64
DIR/<split>/<image|text|dense>.json      header: teacher, width, type, rows and the identity of the data

Those of dense captions belong to images: they have the image_id.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itr.data.loading.fields import Field
from itr.data.shards.schema import Sample, is_whole
from itr.errors import UserError
from itr.files.writing import whole_file
from itr.teachers.base import Modality

FORMAT = "itr-features/1"
DTYPE = "float16"
FROM_NPY = "from_npy:"  # stands before the file where features were converted
# What a message suggests where no file names a teacher: those of CUSA, https://arxiv.org/abs/2403.05261
USUAL_TEACHERS = {
    "image": "unicom:FP16-ViT-B-32.pt",
    "text": "sentence-transformers/all-mpnet-base-v2",
    "dense": "STAGE1.ckpt",
}


@dataclass(frozen=True)
class FeaturePaths:
    """Where the features of one split and modality lie."""

    folder: Path
    split: str
    modality: Modality

    def path(self, ending: str) -> Path:
        """DIR/<split>/<modality><ending>."""
        return self.folder / self.split / f"{self.modality}{ending}"

    @property
    def rows(self) -> Path:
        """The features."""
        return self.path(".npy")

    @property
    def ids(self) -> Path:
        """The identity of each row."""
        return self.path("_ids.npy")

    @property
    def header(self) -> Path:
        """The header, written last: where it is, the others are whole."""
        return self.path(".json")


@dataclass(frozen=True)
class Header:
    """What a feature file says of itself.

    Attributes:
        teacher: name of the model, as it was given.
        modality: what it encodes.
        width: D of a row.
        rows: N.
        data: identity of the split, see `data_identity`.
        settings: how it was run, as far as numbers depend on it.
        weights: identity of the model's weights, where it is a checkpoint of ours.
    """

    teacher: str
    modality: Modality
    width: int
    rows: int
    data: str
    settings: dict[str, Any] = field(default_factory=dict)
    weights: str = ""
    dtype: str = DTYPE
    format: str = FORMAT

    def write(self, path: Path) -> None:
        """Write the header, whole or not at all."""
        with whole_file(path) as file:
            file.write((json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> Header:
        """Read a header; ValueError where the file is none."""
        try:
            header = cls(**json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no header of features ({error})") from None
        texts = header.teacher, header.modality, header.data, header.weights, header.dtype, header.format
        if not (all(isinstance(text, str) for text in texts) and isinstance(header.settings, dict)):
            raise ValueError(f"{path} is no header of features (a value has another type than it should)")
        if not (is_whole(header.rows) and is_whole(header.width) and header.width):
            raise ValueError(f"{path} is no header of features (rows {header.rows!r}, width {header.width!r})")
        return header


def features_command(
    data: Path | str, split: str, modality: Modality, out: Path | str, header: Header | None = None
) -> str:
    """The command that makes the features of a split; with a header, the one that makes those anew."""
    words = ["itr", "features", "--data", str(data), "--modality", modality]
    teacher = header.teacher if header else USUAL_TEACHERS[modality]
    if teacher.startswith(FROM_NPY):
        words += ["--from_npy", teacher.removeprefix(FROM_NPY), "--trust_pickle", "true"]
    else:
        words += ["--model", teacher]
    words += ["--splits", split, "--out", str(out)]
    for name, value in (header.settings if header else {}).items():
        words += [f"--{name}", str(value)]
    return shlex.join(words + ["--overwrite", "true"] * (header is not None))


class FeatureFile:
    """The features of one split and modality, mapped into memory when first read.

    It can be pickled: a worker that loads data maps the file anew, so all of them share the pages of one file.
    """

    def __init__(self, paths: FeaturePaths, header: Header, data: Path | str = "SHARDS") -> None:
        self.paths, self.header, self.data = paths, header, data
        self._arrays: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def open(
        cls, folder: Path | str, split: str, modality: Modality, identity: str, data: Path | str = "SHARDS"
    ) -> FeatureFile:
        """Check the features of a split.

        Args:
            folder: where `itr features` wrote.
            split: name of the split.
            modality: `image` or `text`.
            identity: `data_identity` of the split that is trained on.
            data: folder of its shards, for messages.

        Raises:
            UserError: no such file, or one that is damaged or of other data; it tells the command that makes them.
        """
        paths = FeaturePaths(Path(folder), split, modality)
        if not paths.header.is_file():
            state = "is not finished" if paths.path(".json.part").is_file() else "is not there"
            command = features_command(data, split, modality, folder)
            raise UserError(f"a method needs {modality} features, and {paths.rows} {state}; this makes it:\n{command}")
        header = None
        try:
            header = Header.read(paths.header)
            opened = cls(paths, header, data)
            opened._check(identity)
        except Exception as error:  # numpy parses a header as Python does: a damaged one raises any error of a parser
            command = features_command(data, split, modality, folder, header)
            command += "" if header else " --overwrite true"
            raise UserError(f"the {modality} features can't be used: {error}; make them again:\n{command}") from None
        return opened

    def _check(self, identity: str) -> None:
        header, paths = self.header, self.paths
        wanted = {"format": FORMAT, "dtype": DTYPE, "modality": paths.modality, "data": identity}
        for name, value in wanted.items():
            found = getattr(header, name)
            if found != value:
                hint = ": it was made from other shards" if name == "data" else ""
                raise ValueError(f"{paths.header} has {name} {found!r}, and {value!r} is wanted{hint}")
        rows, ids = self.arrays
        for path, array, dtype, shape in (
            (paths.rows, rows, DTYPE, (header.rows, header.width)),
            (paths.ids, ids, "int64", (header.rows,)),
        ):
            if array.dtype != dtype or array.shape != shape:
                found = f"{array.dtype} {list(array.shape)}"
                raise ValueError(f"{path} holds {found}, and its header says {dtype} {list(shape)}")
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
            UserError: an id has none.
        """
        rows, known = self.arrays
        wanted = np.asarray(ids, dtype=np.int64)
        places = np.searchsorted(known, wanted)
        found = known[np.minimum(places, len(known) - 1)] == wanted if len(known) else np.zeros(len(wanted), bool)
        if not found.all():
            name = "caption_id" if self.paths.modality == "text" else "image_id"
            raise UserError(f"{self.paths.rows} has no row for {name} {wanted[~found][0]}; {self._again()}")
        picked = rows[places]
        if np.isnan(picked[:, 0]).any():  # `itr features` could not decode the image
            missing = wanted[np.isnan(picked[:, 0])][0]
            raise UserError(f"{self.paths.rows}: image {missing} could not be decoded; mend it and {self._again()}")
        return torch.from_numpy(np.ascontiguousarray(picked))

    def command(self) -> str:
        """The command that makes this file anew."""
        paths = self.paths
        return features_command(self.data, paths.split, paths.modality, paths.folder, self.header)

    def _again(self) -> str:
        return f"make the features again:\n{self.command()}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": None}


class TeacherFeatures(Field):
    """A teacher's feature of each row, float16.

    `teacher_image` and `teacher_dense`, of the image's dense caption, have a row an image [I, D], `teacher_text` a row
    a caption [C, D].
    """

    def __init__(self, file: FeatureFile) -> None:
        self.file = file
        self.of = "text" if file.paths.modality == "text" else "image"
        self.name = f"teacher_{file.paths.modality}"

    def read(self, samples: Sequence[Sample], captions: Sequence[int]) -> Tensor:
        """Take the rows of the batch from disk."""
        if self.of == "image":
            return self.file.rows([sample.image_id for sample in samples])
        return self.file.rows([s.caption_ids[caption] for s, caption in zip(samples, captions, strict=True)])
