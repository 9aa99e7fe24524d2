"""Images with a class each, as the sets of image retrieval have them: CUB, SOP, In-Shop, iNaturalist, any folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from itr.data.shards.schema import IMAGE_TYPES
from itr.errors import UserError

Layout = Literal["auto", "cub", "sop", "inshop", "inaturalist", "folder"]
# Images of the protocol that UNICOM and CUSA report. CUB: all images of its classes 101 to 200, of both halves of
# `train_test_split.txt`, which is for classification and has no say here.
PUBLISHED = {"cub": 5_924, "sop": 60_502, "inshop": 26_830, "inaturalist": 136_093}
CUB_TEST_CLASSES = range(101, 201)
MARKS = {
    "cub": ("image_class_labels.txt", "CUB_200_2011/image_class_labels.txt"),
    "sop": ("Ebay_test.txt", "Stanford_Online_Products/Ebay_test.txt"),
    "inshop": ("list_eval_partition.txt", "Eval/list_eval_partition.txt"),
    "inaturalist": ("Inat_dataset_splits/Inaturalist_test_set1.txt", "Inaturalist_test_set1.txt", "val2018.json"),
}


@dataclass
class LabelledImages:
    """Images with a class each.

    Attributes:
        name: of the set, for the figures.
        root: folder that names of images start from.
        names: the images [N].
        labels: the class of each [N].
        queries: which of them are searched with; None for all.
        gallery: which of them are searched; None for all.
        lists: the files that said so.
    """

    name: str
    root: Path
    names: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    queries: list[int] | None = None
    gallery: list[int] | None = None
    lists: list[Path] = field(default_factory=list)

    @property
    def paths(self) -> list[Path]:
        """The files of the images [N]."""
        return [self.root / name for name in self.names]

    def add(self, name: str, label: str) -> None:
        """Add an image."""
        self.names.append(name)
        self.labels.append(label)


def read_images(root: Path, layout: Layout) -> LabelledImages:
    """The test images of a set.

    Raises:
        UserError: it is not there, names no image, one class only, or images that are not there.
    """
    if not root.is_dir():
        raise UserError(f"--root: there is no folder {root}")
    kind = recognise(root) if layout == "auto" else layout
    images = _folder(root) if kind == "folder" else READERS[kind](root, _mark(root, kind))
    if not images.names:
        raise UserError(f"{root} holds no test image of layout {kind}")
    missing = [path for path in images.paths if not path.is_file()]
    if missing:
        raise UserError(f"{len(missing)} of {len(images.names)} images are not there, the first is {missing[0]}")
    if len(images.names) > 1 and len(set(images.labels)) == 1:
        raise UserError(f"all images of {root} are of one class, {images.labels[0]!r}: every one would be a hit")
    return images


def recognise(root: Path) -> str:
    """The layout of a folder, by the files that it holds."""
    for kind, marks in MARKS.items():
        if any((root / mark).is_file() for mark in marks):
            return kind
    return "folder"


def _mark(root: Path, kind: str) -> Path:
    found = next((root / mark for mark in MARKS[kind] if (root / mark).is_file()), None)
    if found is None:
        raise UserError(f"{root} is no folder of layout {kind}: there is no {' and no '.join(MARKS[kind])}")
    return found


def _rows(path: Path, columns: int, skip: int = 0) -> Iterator[list[str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read: {error}") from None
    for number, line in enumerate(lines[skip:], skip + 1):
        row = line.split()
        if row and len(row) != columns:
            raise UserError(f"{path}, line {number}: {len(row)} words, and {columns} are wanted")
        if row:
            yield row


def _cub(root: Path, mark: Path) -> LabelledImages:
    base, images = mark.parent, mark.with_name("images.txt")
    found = LabelledImages("cub", base / "images", lists=[images, mark])
    label = dict(_rows(mark, 2))
    for number, name in _rows(images, 2):
        if number not in label:
            raise UserError(f"{images} has an image {number}, and {mark} says no class of it")
        if label[number].isdecimal() and int(label[number]) in CUB_TEST_CLASSES:
            found.add(name, label[number])
    return found


def _sop(root: Path, mark: Path) -> LabelledImages:
    found = LabelledImages("sop", mark.parent, lists=[mark])
    for _, label, _, name in _rows(mark, 4, skip=1):
        found.add(name, label)
    return found


def _inshop(root: Path, mark: Path) -> LabelledImages:
    images = root / "Img"
    found = LabelledImages("inshop", images if images.is_dir() else root, lists=[mark])
    parts: dict[str, list[int]] = {"query": [], "gallery": []}
    for name, label, part in _rows(mark, 3, skip=2):
        if part in parts:
            parts[part].append(len(found.names))
            found.add(name, label)
    found.queries, found.gallery = parts["query"], parts["gallery"]
    return found


def _inaturalist(root: Path, mark: Path) -> LabelledImages:
    if mark.suffix == ".json":
        return _inaturalist_json(root, mark)
    found = LabelledImages("inaturalist", root, lists=[mark])
    for (name,) in _rows(mark, 1):
        if name.count("/") < 2:
            raise UserError(f"{mark} names {name!r}; FOLDER/.../CLASS/PICTURE is wanted")
        found.add(name, name.split("/")[-2])
    return found


def _inaturalist_json(root: Path, mark: Path) -> LabelledImages:
    """The validation images of the 2018 challenge: another set than the protocol's, hence another name."""
    found = LabelledImages("inaturalist_val2018", root, lists=[mark])
    try:
        content: Any = json.loads(mark.read_text(encoding="utf-8"))
        name = {image["id"]: image["file_name"] for image in content["images"]}
        for annotation in content["annotations"]:
            found.add(name[annotation["image_id"]], str(annotation["category_id"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{mark} is no annotation file of iNaturalist ({type(error).__name__}: {error})") from None
    return found


def _folder(root: Path) -> LabelledImages:
    found = LabelledImages(root.resolve().name, root)
    for path in sorted(root.rglob("*")):
        if path.suffix.lower().lstrip(".") in IMAGE_TYPES and not path.name.startswith("._"):
            name = path.relative_to(root)
            if len(name.parts) < 2:
                raise UserError(f"the image {path} lies in no class: layout folder wants ROOT/CLASS/PICTURE")
            found.add(name.as_posix(), name.parts[0])
    if not found.names:
        wanted = ", ".join(mark[0] for mark in MARKS.values())
        raise UserError(f"{root} holds no images in folders, one a class; nor is there any of {wanted}")
    return found


READERS: dict[str, Callable[[Path, Path], LabelledImages]] = {
    "cub": _cub,
    "sop": _sop,
    "inshop": _inshop,
    "inaturalist": _inaturalist,
}
