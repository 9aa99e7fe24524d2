"""Paths and header of a feature file, and the command that creates it."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from itr.data.shards.schema import is_whole
from itr.files.writing import whole_file
from itr.teachers.base import Modality

FORMAT = "itr-features/1"
DTYPE = "float16"
FROM_NPY = "from_npy:"  # prefix of the file name in place of a teacher, for converted features
# Teachers that messages suggest if no header names one: those of CUSA, https://arxiv.org/abs/2403.05261
USUAL_TEACHERS = {
    "image": "unicom:FP16-ViT-B-32.pt",
    "text": "sentence-transformers/all-mpnet-base-v2",
    "dense": "STAGE1.ckpt",
}


@dataclass(frozen=True)
class FeaturePaths:
    """The files with the features of one split and modality."""

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
        return self.column("ids")

    def column(self, name: str) -> Path:
        """Numbers that are stored of each row, by name."""
        return self.path(f"_{name}.npy")

    @property
    def header(self) -> Path:
        """The header, written last: if it exists, the other files are complete."""
        return self.path(".json")


@dataclass(frozen=True)
class Header:
    """Header of a feature file.

    Attributes:
        teacher: name of the model, as given by the user.
        modality: what the model encodes.
        width: width D of a row.
        rows: number of images or captions in the shards.
        data: identity of the split, see `data_identity`.
        settings: options that affect the features.
        weights: identity of the model's weights, if it is an itr checkpoint.
        repeated: how many of these have the id of another one and no row of their own: N is the number of ids.
        dtype: type of the features.
        format: name and version of the file format.
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
    repeated: int = 0

    def write(self, path: Path) -> None:
        """Write the header atomically."""
        with whole_file(path) as file:
            file.write((json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> Header:
        """Read a header.

        Raises:
            ValueError: the file is not a header.
        """
        try:
            header = cls(**json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a feature header ({error})") from None
        texts = header.teacher, header.modality, header.data, header.weights, header.dtype, header.format
        if not (all(isinstance(text, str) for text in texts) and isinstance(header.settings, dict)):
            raise ValueError(f"{path} is not a feature header (a value has the wrong type)")
        numbers = header.rows, header.width, header.repeated
        if not (all(map(is_whole, numbers)) and header.width and header.repeated <= header.rows):
            raise ValueError(f"{path} is not a feature header (rows {header.rows!r}, width {header.width!r})")
        return header


def described(paths: FeaturePaths) -> str:
    """The size of complete features, for messages."""
    header = Header.read(paths.header)
    note = (
        f" ({header.repeated} of the {header.rows} samples repeat an id, and share its row)" if header.repeated else ""
    )
    return f"{header.rows - header.repeated} rows x {header.width}{note}"


def features_command(
    data: Path | str, split: str, modality: Modality, out: Path | str, header: Header | None = None
) -> str:
    """The command that computes the features of a split; with a header, one that computes the same features again."""
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
