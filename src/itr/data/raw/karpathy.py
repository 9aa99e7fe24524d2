"""The JSON of Karpathy's splits: `dataset_flickr30k.json` and `dataset_coco.json`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from itr.data.raw.entries import Entry
from itr.data.raw.files import find_file, read_json, says_something, squeeze, tell
from itr.data.raw.image_folders import ImageFolders
from itr.data.raw.layouts import Layout
from itr.errors import UserError

SPLIT_NAMES = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def karpathy_layout(root: Path, name: str, images: ImageFolders, restval: bool = True) -> Layout:
    """The layout whose file is called `name`."""
    return Layout(
        "Karpathy's JSON", name, lambda: find_file(root, [name]), lambda path: read_karpathy(path, images, restval)
    )


def read_karpathy(path: Path, images: ImageFolders, restval: bool = True) -> dict[str, list[Entry]]:
    """The images of each split, in the order of the file.

    Args:
        path: the JSON file.
        images: where the images are.
        restval: train on the split `restval` too.

    Raises:
        UserError: the file is not of this kind.
    """
    entries: dict[str, list[Entry]] = {}
    blank: list[object] = []
    without: list[object] = []
    for image, split in images_of(path, restval):
        entry = _entry(image, images, path)
        spoken = [at for at, text in enumerate(entry.captions) if says_something(text)]
        blank += [f"{image['filename']}" for _ in range(len(entry.captions) - len(spoken))]
        entry.captions = [entry.captions[at] for at in spoken]
        if "coco_caption_ids" in entry.meta:
            entry.meta["coco_caption_ids"] = [entry.meta["coco_caption_ids"][at] for at in spoken]
        if entry.captions:
            entries.setdefault(split, []).append(entry)
        else:
            without.append(image["filename"])
    tell(f"{path.name}: empty captions left out", blank)
    tell(f"{path.name}: images without a caption left out", without)
    return entries


def images_of(path: Path, restval: bool) -> Iterator[tuple[dict[str, Any], str]]:
    """The images of the file, each with its split.

    Raises:
        UserError: the file is not of this kind, or names an unknown split.
    """
    raw = read_json(path)
    images = raw.get("images") if isinstance(raw, dict) else None
    if not isinstance(images, list):
        raise UserError(f"{path} has no list `images`, as the JSON of Karpathy's splits has")
    for number, image in enumerate(images):
        found = image if isinstance(image, dict) else {}
        missing = [name for name in ("filename", "split", "sentences") if name not in found]
        if missing:
            raise UserError(f"{path}: image {number} of `images` has no {', '.join(missing)}")
        if not all(isinstance(image.get(name, ""), str) for name in ("filename", "filepath", "split")):
            raise UserError(f"{path}: filename, filepath and split of image {number} of `images` must be texts")
        if image["split"] not in SPLIT_NAMES:
            raise UserError(
                f"{path}: {image['filename']} is in split {image['split']!r}; known: {', '.join(SPLIT_NAMES)}"
            )
        if restval or image["split"] != "restval":
            yield image, SPLIT_NAMES[image["split"]]


def _entry(image: dict[str, Any], images: ImageFolders, path: Path) -> Entry:
    folder, name = image.get("filepath", ""), image["filename"]
    try:
        captions = [squeeze(sentence["raw"]) for sentence in image["sentences"]]
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: a sentence of {name} has no text `raw`") from None
    meta: dict[str, Any] = {"source_id": image.get("cocoid", image.get("imgid"))}
    if "cocoid" in image:  # then the numbers of its sentences are COCO's, which ECCV Caption and CxC use
        ids = [sentence.get("sentid") for sentence in image["sentences"]]
        meta |= {"coco_caption_ids": ids} if None not in ids else {}
    return Entry(images.find(f"{folder}/{name}" if folder else name), captions, meta=meta)
