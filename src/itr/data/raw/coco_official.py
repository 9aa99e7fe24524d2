"""COCO's own `captions_train2014.json` and `captions_val2014.json`, and the split that goes with them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from itr.data.raw.entries import Entry
from itr.data.raw.files import find_file, says_something, squeeze, tell
from itr.data.raw.image_folders import ImageFolders
from itr.data.raw.karpathy import images_of
from itr.data.raw.lines import FILES, read_lines
from itr.data.shards.schema import is_whole
from itr.errors import UserError

PARTS = ("train", "val")
KARPATHY = "dataset_coco.json"
OWN_SPLIT = "official"


def find_official(root: Path) -> dict[str, Path]:
    """The captions file of each official part, where there is one."""
    found = {part: find_file(root, [f"captions_{part}2014.json"]) for part in PARTS}
    return {part: path for part, path in found.items() if path}


def read_official(
    root: Path, paths: dict[str, Path], images: ImageFolders, split_file: str | None, restval: bool
) -> dict[str, list[Entry]]:
    """The images of each split, those of a split in the order of the file that names it.

    Args:
        root: folder of the data set, where the split is looked for.
        paths: captions file of each official part.
        images: where the images are.
        split_file: `dataset_coco.json`, a folder with `train_ids.txt`, `dev_ids.txt` and `testall_ids.txt`, or
            `official` for the parts as they are; by default what is there.
        restval: train on the split `restval` too.

    Raises:
        UserError: a file can't be read, or the split names none of the images.
    """
    parts = {part: dict(_read_part(path, part, images)) for part, path in paths.items()}
    split = find_split_file(root, split_file)
    if split is None:
        files = " and ".join(f"{path.name} is {part}" for part, path in paths.items())
        print(f"no Karpathy split: {files}, and there is no test; put {KARPATHY} there, or give --split_file")
        return {part: [entry for entry in found.values() if entry.captions] for part, found in parts.items()}
    every = {number: entry for found in parts.values() for number, entry in found.items()}
    entries, missing = {}, []
    for name, numbers in _read_split(split, restval).items():
        entries[name] = [every[number] for number in numbers if number in every and every[number].captions]
        missing += [number for number in numbers if number not in every]
    named = sum(map(len, entries.values()))
    print(f"split of {split}: {named:,} of the {len(every):,} images with official captions")
    tell(f"images of {split.name} that the captions files don't have, left out", missing)
    if not named:
        raise UserError(f"{split} names none of the images of {', '.join(map(str, paths.values()))}")
    return entries


def _read_part(path: Path, part: str, images: ImageFolders) -> Iterator[tuple[int, Entry]]:
    coco = _open(path)
    blank: list[object] = []
    for number, image in coco.imgs.items():
        # In the order of their numbers, as in Karpathy's file: the first five are those of the standard test.
        found = sorted(coco.imgToAnns[number], key=lambda annotation: int(annotation["id"]))
        texts = {int(annotation["id"]): squeeze(annotation["caption"]) for annotation in found}
        blank += [f"annotation {at}" for at, text in texts.items() if not says_something(text)]
        texts = {at: text for at, text in texts.items() if says_something(text)}
        name = image["file_name"]
        place = images.find(name)
        if place == name and name not in images.paths:
            place = f"{part}2014/{name}"
        yield number, Entry(place, list(texts.values()), [], {"source_id": number, "coco_caption_ids": list(texts)})
    tell(f"{path.name}: empty captions left out", blank)


def _open(path: Path) -> Any:
    from pycocotools.coco import COCO

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
            coco = COCO(str(path))
        for annotation in chain.from_iterable(coco.imgToAnns.values()):  # its other list keeps one of those with an id
            if annotation["image_id"] not in coco.imgs:
                raise ValueError(f"annotation {annotation['id']} is of image {annotation['image_id']}, not in `images`")
            if not isinstance(annotation["caption"], str):
                raise ValueError(f"the caption of annotation {annotation['id']} is no text")
            if not is_whole(annotation["id"]):
                raise ValueError(f"{annotation['id']!r} is no number of an annotation")
        if not coco.imgs or not all(isinstance(image.get("file_name"), str) for image in coco.imgs.values()):
            raise ValueError("it has no `images` with `file_name`")
        return coco
    except KeyError as error:
        raise UserError(f"{path} is no captions file of COCO: an annotation or image has no {error}") from None
    except (ValueError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise UserError(f"{path} is no captions file of COCO: {error}") from None


def find_split_file(root: Path, split_file: str | None) -> Path | None:
    """The JSON of the split, or the folder of its id lists; None for the official parts.

    Raises:
        UserError: what the user names is not there.
    """
    if split_file == OWN_SPLIT:
        return None
    if split_file is not None:
        path = Path(split_file).expanduser()
        if not path.exists():
            raise UserError(f"there is no {path}; --split_file is {KARPATHY}, a folder of id lists, or {OWN_SPLIT!r}")
        return path
    found = find_file(root, [KARPATHY])
    if found is None:
        ids = find_file(root, ["train_ids.txt"]) or find_file(root, ["testall_ids.txt"])
        found = ids.parent if ids else None
    return found


def _read_split(path: Path, restval: bool) -> dict[str, list[int]]:
    """The COCO numbers of the images of each split."""
    try:
        if path.is_file():
            splits: dict[str, list[int]] = {}
            for image, name in images_of(path, restval):
                splits.setdefault(name, []).append(int(image["cocoid"]))
            return splits
        lists = {split: _id_list(path, split) for split in FILES}
        return {split: list(dict.fromkeys(map(int, ids))) for split, ids in lists.items() if ids}
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} gives no numbers of COCO's images: {error}") from None


def _id_list(folder: Path, split: str) -> list[str]:
    found = next((folder / f"{name}_ids.txt" for name in FILES[split] if (folder / f"{name}_ids.txt").is_file()), None)
    return [line for line in read_lines(found) if line] if found else []
