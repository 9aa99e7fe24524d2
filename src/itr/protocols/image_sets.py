"""Read the test images of image retrieval data sets with their classes: CUB, SOP, In-Shop, iNaturalist, any folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from itr.commands.inputs import check_folder
from itr.data.tables.text_files import text_lines
from itr.errors import UserError, shown
from itr.images.folders import find_images

ImageSetLayout = Literal["auto", "cub", "sop", "inshop", "inaturalist", "folder"]
# Numbers of test images in the protocol that UNICOM and CUSA report. CUB: all images of classes 101 to 200, in both
# halves of `train_test_split.txt`, which is for classification and is ignored here.
PUBLISHED = {"cub": 5_924, "sop": 60_502, "inshop": 26_830, "inaturalist": 136_093}
CUB_TEST_CLASSES = range(101, 201)
MARKER_FILES = {
    "cub": ("image_class_labels.txt", "CUB_200_2011/image_class_labels.txt"),
    "sop": ("Ebay_test.txt", "Stanford_Online_Products/Ebay_test.txt"),
    "inshop": ("list_eval_partition.txt", "Eval/list_eval_partition.txt"),
    "inaturalist": ("Inat_dataset_splits/Inaturalist_test_set1.txt", "Inaturalist_test_set1.txt", "val2018.json"),
}


@dataclass
class LabeledImages:
    """Images with their classes.

    Attributes:
        name: name of the data set, used in the names of the metrics.
        root: folder to which image names are relative.
        names: image names [N].
        labels: class of each image [N].
        queries: indices of the query images; None for all.
        gallery: indices of the gallery images; None for all.
        lists: files from which names and classes were read.
        notices: one line for each kind of thing in the folder that was not read.
    """

    name: str
    root: Path
    names: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    queries: list[int] | None = None
    gallery: list[int] | None = None
    lists: list[Path] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def paths(self) -> list[Path]:
        """The files of the images [N]."""
        return [self.root / name for name in self.names]

    def add(self, name: str, label: str) -> None:
        """Add an image."""
        self.names.append(name)
        self.labels.append(label)


def read_images(root: Path, layout: ImageSetLayout) -> LabeledImages:
    """Read the test images of a data set.

    Raises:
        UserError: the folder does not exist, lists no image or only one class, or an image file is missing.
    """
    check_folder("--root", root)
    kind = detect_layout(root) if layout == "auto" else layout
    images = _folder(root) if kind == "folder" else READERS[kind](root, _marker_file(root, kind))
    if not images.names:
        raise UserError(f"{root} contains no test images in layout {kind}")
    missing = [path for path in images.paths if not path.is_file()]
    if missing:
        raise UserError(f"{len(missing)} of {len(images.names)} images are missing; the first is {missing[0]}")
    if len(images.names) > 1 and len(set(images.labels)) == 1:
        raise UserError(
            f"all images of {root} are in one class, {shown(images.labels[0])}, so every image would be a correct hit"
        )
    return images


def detect_layout(root: Path) -> str:
    """The layout of a folder, recognized by the files in it."""
    for kind, markers in MARKER_FILES.items():
        if any((root / marker).is_file() for marker in markers):
            return kind
    return "folder"


def _marker_file(root: Path, kind: str) -> Path:
    found = next((root / marker for marker in MARKER_FILES[kind] if (root / marker).is_file()), None)
    if found is None:
        wanted = " or ".join(MARKER_FILES[kind])
        raise UserError(f"{root} does not have the layout {kind}: it does not contain {wanted}")
    return found


def _rows(path: Path, columns: int, skip: int = 0) -> Iterator[list[str]]:
    for number, line in enumerate(text_lines(path)[skip:], skip + 1):
        row = line.split()
        if row and len(row) != columns:
            raise UserError(f"{path}, line {number}: expected {columns} words, found {len(row)}")
        if row:
            yield row


def _cub(root: Path, mark: Path) -> LabeledImages:
    base, images = mark.parent, mark.with_name("images.txt")
    found = LabeledImages("cub", base / "images", lists=[images, mark])
    label = dict(_rows(mark, 2))
    for number, name in _rows(images, 2):
        if number not in label:
            raise UserError(f"{mark} gives no class for image {number} of {images}")
        if label[number].isdecimal() and int(label[number]) in CUB_TEST_CLASSES:
            found.add(name, label[number])
    return found


def _sop(root: Path, mark: Path) -> LabeledImages:
    found = LabeledImages("sop", mark.parent, lists=[mark])
    for _, label, _, name in _rows(mark, 4, skip=1):
        found.add(name, label)
    return found


def _inshop(root: Path, mark: Path) -> LabeledImages:
    images = root / "Img"
    found = LabeledImages("inshop", images if images.is_dir() else root, lists=[mark])
    parts: dict[str, list[int]] = {"query": [], "gallery": []}
    for name, label, part in _rows(mark, 3, skip=2):
        if part in parts:
            parts[part].append(len(found.names))
            found.add(name, label)
    found.queries, found.gallery = parts["query"], parts["gallery"]
    return found


def _inaturalist(root: Path, mark: Path) -> LabeledImages:
    if mark.suffix == ".json":
        return _inaturalist_json(root, mark)
    found = LabeledImages("inaturalist", root, lists=[mark])
    for (name,) in _rows(mark, 1):
        if name.count("/") < 2:
            raise UserError(f"{mark} lists {shown(name)}; expected a path such as FOLDER/.../CLASS/IMAGE")
        found.add(name, name.split("/")[-2])
    return found


def _inaturalist_json(root: Path, mark: Path) -> LabeledImages:
    """The validation images of the 2018 challenge; not the protocol's test set, so the name differs."""
    found = LabeledImages("inaturalist_val2018", root, lists=[mark])
    try:
        content: Any = json.loads(mark.read_text(encoding="utf-8"))
        name = {image["id"]: image["file_name"] for image in content["images"]}
        for annotation in content["annotations"]:
            found.add(name[annotation["image_id"]], str(annotation["category_id"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{mark} is not an iNaturalist annotation file ({type(error).__name__}: {error})") from None
    return found


def _folder(root: Path) -> LabeledImages:
    found = LabeledImages(root.resolve().name, root)
    images = find_images(root)
    found.notices = images.notices()
    for name in images.names:
        label, _, below = name.partition("/")
        if not below:
            raise UserError(f"the image {root / name} is not in a class folder; layout folder expects ROOT/CLASS/IMAGE")
        found.add(name, label)
    if not found.names:
        wanted = ", ".join(markers[0] for markers in MARKER_FILES.values())
        lines = "".join(f"\n{notice}" for notice in found.notices)
        raise UserError(f"{root} contains neither images in one folder per class nor any of {wanted}{lines}")
    return found


READERS: dict[str, Callable[[Path, Path], LabeledImages]] = {
    "cub": _cub,
    "sop": _sop,
    "inshop": _inshop,
    "inaturalist": _inaturalist,
}
