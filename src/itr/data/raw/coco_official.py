"""COCO's own captions files, `captions_train2014.json` and so on or those of 2017, and the split to apply to them.

2017 divides the images of 2014 in another way and names them by their number alone; ids and captions are the same.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from itr.data.raw.entries import ImageEntry
from itr.data.raw.files import collapse_whitespace, find_file, has_visible_text, report_examples
from itr.data.raw.image_folders import ImageFolders
from itr.data.raw.karpathy import karpathy_images
from itr.data.raw.lines import SPLIT_FILES, read_lines
from itr.data.shards.schema import is_whole
from itr.errors import UserError

OFFICIAL_PARTS = ("train", "val")
OFFICIAL_YEARS = ("2014", "2017")
COCO_KARPATHY_FILE = "dataset_coco.json"
OFFICIAL_SPLIT = "official"


def find_official(root: Path, images: ImageFolders) -> dict[str, Path]:
    """The captions file of each official part that exists, of the year whose images exist.

    Raises:
        UserError: there are files of both years, and images of both or of none.
    """
    by_year: dict[str, dict[str, Path]] = {}
    for year in OFFICIAL_YEARS:
        found = {part: find_file(root, [f"captions_{part}{year}.json"]) for part in OFFICIAL_PARTS}
        by_year |= {year: paths} if (paths := {part: path for part, path in found.items() if path}) else {}
    if len(by_year) > 1:
        # The names of 2014 begin with COCO_, and those of 2017 are a number.
        kinds = {"2017" if stem.isdecimal() else "2014" for stem in images.by_stem}
        years = [year for year in by_year if year in kinds]
        if len(years) != 1:
            files = " and ".join(str(path) for paths in by_year.values() for path in paths.values())
            raise UserError(
                f"found captions files of 2014 and 2017: {files}; keep those of the images in {images.root}"
            )
        by_year = {years[0]: by_year[years[0]]}
    return next(iter(by_year.values()), {})


def read_official(
    root: Path, paths: dict[str, Path], images: ImageFolders, split_file: str | None, restval: bool
) -> dict[str, list[ImageEntry]]:
    """The images of each split, in the order of the file that defines the split.

    Args:
        root: folder of the data set, which is searched for the split.
        paths: captions file of each official part.
        images: index of the image folders.
        split_file: `dataset_coco.json`, a folder with `train_ids.txt`, `dev_ids.txt` and `testall_ids.txt`, or
            `official` for the parts unchanged; by default, whichever of these exists.
        restval: add the split `restval` to the training images.

    Raises:
        UserError: a file could not be read, or the split and the captions files share no image.
    """
    parts = {part: dict(_read_part(path, part, images)) for part, path in paths.items()}
    split = find_split_file(root, split_file)
    if split is None:
        files = " and ".join(f"{path.name} is {part}" for part, path in paths.items())
        print(
            f"no Karpathy split found: using {files}, without a test split; "
            f"to use the Karpathy split, put {COCO_KARPATHY_FILE} in {root} or pass --split_file"
        )
        return {part: [entry for entry in found.values() if entry.captions] for part, found in parts.items()}
    by_number = {number: entry for found in parts.values() for number, entry in found.items()}
    entries, missing = {}, []
    for name, numbers in _read_split(split, restval).items():
        entries[name] = [by_number[number] for number in numbers if number in by_number and by_number[number].captions]
        missing += [number for number in numbers if number not in by_number]
    num_selected = sum(map(len, entries.values()))
    print(f"split from {split}: {num_selected:,} of the {len(by_number):,} images with official captions")
    report_examples(f"skipped images of {split.name} that are not in the captions files", missing)
    if not num_selected:
        captions_files = ", ".join(map(str, paths.values()))
        raise UserError(
            f"{split} and {captions_files} have no image in common; use the split that matches the captions"
        )
    return entries


def _read_part(path: Path, part: str, images: ImageFolders) -> Iterator[tuple[int, ImageEntry]]:
    coco = _open(path)
    blank: list[object] = []
    for number, image in coco.imgs.items():
        # Ordered by annotation id, as in Karpathy's file: the standard test uses the first five.
        annotations = sorted(coco.imgToAnns[number], key=lambda annotation: int(annotation["id"]))
        texts = {int(annotation["id"]): collapse_whitespace(annotation["caption"]) for annotation in annotations}
        blank += [f"annotation {id_}" for id_, text in texts.items() if not has_visible_text(text)]
        texts = {id_: text for id_, text in texts.items() if has_visible_text(text)}
        name = image["file_name"]
        image_path = images.find(name)
        if image_path == name and name not in images.paths:
            image_path = f"{part}{path.stem[-4:]}/{name}"
        meta = {"source_id": number, "coco_caption_ids": list(texts)}
        yield number, ImageEntry(image_path, list(texts.values()), [], meta)
    report_examples(f"{path.name}: skipped empty captions", blank)


def _open(path: Path) -> Any:
    from pycocotools.coco import COCO

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # COCO prints its progress
            coco = COCO(str(path))
        for annotation in chain.from_iterable(coco.imgToAnns.values()):  # `coco.anns` keeps only one annotation per id
            if annotation["image_id"] not in coco.imgs:
                raise ValueError(
                    f"annotation {annotation['id']} refers to image {annotation['image_id']}, which is not in `images`"
                )
            if not isinstance(annotation["caption"], str):
                raise ValueError(f"the caption of annotation {annotation['id']} is not a string")
            if not is_whole(annotation["id"]):
                raise ValueError(f"the annotation id {annotation['id']!r} is not an integer")
        if not coco.imgs or not all(isinstance(image.get("file_name"), str) for image in coco.imgs.values()):
            raise ValueError("it has no list `images` whose items have a `file_name`")
        return coco
    except KeyError as error:
        raise UserError(f"{path} is not a COCO captions file: an annotation or image has no {error}") from None
    except (ValueError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise UserError(f"{path} is not a COCO captions file: {error}") from None


def find_split_file(root: Path, split_file: str | None) -> Path | None:
    """The JSON file of the split, or the folder with its id lists; None for the official parts.

    Raises:
        UserError: the given file or folder does not exist.
    """
    if split_file == OFFICIAL_SPLIT:
        return None
    if split_file is not None:
        path = Path(split_file).expanduser()
        if not path.exists():
            raise UserError(
                f"{path} does not exist; --split_file must be {COCO_KARPATHY_FILE}, a folder with id lists, "
                f"or {OFFICIAL_SPLIT!r}"
            )
        return path
    found = find_file(root, [COCO_KARPATHY_FILE])
    if found is None:
        ids = find_file(root, ["train_ids.txt"]) or find_file(root, ["testall_ids.txt"])
        found = ids.parent if ids else None
    return found


def _read_split(path: Path, restval: bool) -> dict[str, list[int]]:
    """The COCO image ids of each split."""
    try:
        if path.is_file():
            splits: dict[str, list[int]] = {}
            for image, name in karpathy_images(path, restval):
                splits.setdefault(name, []).append(int(image["cocoid"]))
            return splits
        lists = {split: _id_list(path, split) for split in SPLIT_FILES}
        return {split: list(dict.fromkeys(map(int, ids))) for split, ids in lists.items() if ids}
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"could not read COCO image ids from {path}: {error}") from None


def _id_list(folder: Path, split: str) -> list[str]:
    found = next(
        (folder / f"{name}_ids.txt" for name in SPLIT_FILES[split] if (folder / f"{name}_ids.txt").is_file()),
        None,
    )
    return [line for line in read_lines(found) if line] if found else []
