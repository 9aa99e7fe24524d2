"""The JSON of Karpathy's splits: `dataset_flickr30k.json` and `dataset_coco.json`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from itr.data.raw.entries import ImageEntry
from itr.data.raw.files import collapse_whitespace, find_file, has_visible_text, read_json, report_examples
from itr.data.raw.image_folders import ImageFolders
from itr.data.raw.layouts import RawLayout
from itr.errors import UserError, shown

KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def karpathy_layout(root: Path, name: str, images: ImageFolders, restval: bool = True) -> RawLayout:
    """The layout that consists of the file `name`."""
    return RawLayout(
        "Karpathy JSON", name, lambda: find_file(root, [name]), lambda path: read_karpathy(path, images, restval)
    )


def read_karpathy(path: Path, images: ImageFolders, restval: bool = True) -> dict[str, list[ImageEntry]]:
    """The images of each split, in the order of the file.

    Args:
        path: the JSON file.
        images: index of the image folders.
        restval: add the split `restval` to the training images.

    Raises:
        UserError: the file does not have the expected structure.
    """
    entries: dict[str, list[ImageEntry]] = {}
    blank: list[object] = []
    uncaptioned: list[object] = []
    for image, split in karpathy_images(path, restval):
        entry = _entry(image, images, path)
        kept = [i for i, text in enumerate(entry.captions) if has_visible_text(text)]
        blank += [f"{image['filename']}" for _ in range(len(entry.captions) - len(kept))]
        entry.captions = [entry.captions[i] for i in kept]
        if "coco_caption_ids" in entry.meta:
            entry.meta["coco_caption_ids"] = [entry.meta["coco_caption_ids"][i] for i in kept]
        if entry.captions:
            entries.setdefault(split, []).append(entry)
        else:
            uncaptioned.append(image["filename"])
    report_examples(f"{path.name}: skipped empty captions", blank)
    report_examples(f"{path.name}: skipped images without a caption", uncaptioned)
    return entries


def karpathy_images(path: Path, restval: bool) -> Iterator[tuple[dict[str, Any], str]]:
    """The images of the file, each with its split.

    Raises:
        UserError: the file does not have the expected structure, or has an unknown split.
    """
    raw = read_json(path)
    images = raw.get("images") if isinstance(raw, dict) else None
    if not isinstance(images, list):
        raise UserError(f"{path} is not a Karpathy split file: it has no list `images`")
    for number, image in enumerate(images):
        found = image if isinstance(image, dict) else {}
        missing = [name for name in ("filename", "split", "sentences") if name not in found]
        if missing:
            raise UserError(f"{path}: image {number} of `images` has no {', '.join(missing)}")
        if not all(isinstance(image.get(name, ""), str) for name in ("filename", "filepath", "split")):
            raise UserError(f"{path}: filename, filepath and split of image {number} of `images` must be strings")
        if image["split"] not in KARPATHY_SPLITS:
            raise UserError(
                f"{path}: {shown(image['filename'])[1:-1]} is in the unknown split {shown(image['split'])}; "
                f"known splits: {', '.join(KARPATHY_SPLITS)}"
            )
        if restval or image["split"] != "restval":
            yield image, KARPATHY_SPLITS[image["split"]]


def _entry(image: dict[str, Any], images: ImageFolders, path: Path) -> ImageEntry:
    folder, name = image.get("filepath", ""), image["filename"]
    try:
        captions = [collapse_whitespace(sentence["raw"]) for sentence in image["sentences"]]
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: a sentence of {name} has no string `raw`") from None
    meta: dict[str, Any] = {"source_id": image.get("cocoid", image.get("imgid"))}
    if "cocoid" in image:  # then `sentid` is COCO's annotation id, which ECCV Caption and CxC use
        ids = [sentence.get("sentid") for sentence in image["sentences"]]
        meta |= {"coco_caption_ids": ids} if None not in ids else {}
    return ImageEntry(images.find(f"{folder}/{name}" if folder else name), captions, meta=meta)
