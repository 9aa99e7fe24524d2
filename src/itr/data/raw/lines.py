"""The text files of VSE-infinity, LAPS and D2S-VSE: `train_caps.txt`, `train_ids.txt` and `id_mapping.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from itr.data.raw.entries import ImageEntry
from itr.data.raw.files import collapse_whitespace, find_file, has_visible_text, read_json, report_examples
from itr.data.raw.image_folders import ImageFolders
from itr.data.raw.layouts import RawLayout
from itr.data.tables.text_files import text_lines
from itr.errors import UserError

# File names of each split; the first that exists is read. For COCO, `testall` is all 5,000 images, `test` the first
# 1,000.
SPLIT_FILES = {"train": ("train",), "val": ("devall", "dev", "val"), "test": ("testall", "test")}
CAPTIONS_PER_IMAGE = 5  # if the ids file lists each image once
MAPPING = "id_mapping.json"
Namer = Callable[[str, str], str | None]  # (id, split) -> file name


def text_layout(root: Path, looks_for: str, images: ImageFolders, namer: Namer, splits: Sequence[str]) -> RawLayout:
    """The text layout; only `splits` are read. `namer` returns the file name of an id that has no mapping."""
    return RawLayout(
        "text files",
        looks_for,
        lambda: find_text_folder(root),
        lambda folder: {split: read_text_split(folder, root, split, images, namer) for split in splits},
    )


def find_text_folder(root: Path) -> Path | None:
    """The folder of the captions files: `root`, or one directly below it."""
    names = [name for candidates in SPLIT_FILES.values() for name in candidates]
    for name in names:
        found = find_file(root, [f"{name}_caps.txt"])
        if found:
            return found.parent
    return None


def read_text_split(folder: Path, root: Path, split: str, images: ImageFolders, namer: Namer) -> list[ImageEntry]:
    """The images of one split, in the order of its ids; empty if its files do not exist.

    Args:
        folder: folder of the captions files.
        root: folder of the data set, which may have the mapping from ids to file names.
        split: train, val or test.
        images: index of the image folders.
        namer: returns the file name of an id that has no mapping.

    Raises:
        UserError: one of its two files is missing, they do not match, or an id has no image.
    """
    paths = _files(folder, split)
    if not paths:
        return []
    captions_path, ids_path = paths
    ids = [line for line in read_lines(ids_path) if line]
    captions = match_captions_to_ids(read_lines(captions_path), ids, captions_path, ids_path)
    names = _names(dict.fromkeys(ids), _mapping(folder, root), lambda id_: namer(id_, split), ids_path)
    texts: dict[str, list[str]] = {id_: [] for id_ in names}
    blank = []
    for number, (id_, text) in enumerate(zip(_repeat_ids(ids, captions), captions, strict=True), 1):
        if has_visible_text(text):
            texts[id_].append(text)
        else:
            blank.append(f"line {number}")
    report_examples(f"{captions_path.name}: skipped empty lines", blank)
    report_examples(f"{captions_path.name}: skipped images without a caption", [id_ for id_ in texts if not texts[id_]])
    return [ImageEntry(images.find(names[id_]), found, meta=_meta(id_)) for id_, found in texts.items() if found]


def _names(
    ids: Iterable[str], mapping: dict[str, str], namer: Callable[[str], str | None], path: Path
) -> dict[str, str]:
    """The file name of each id."""
    names = {id_: mapping.get(id_) or namer(id_) for id_ in ids}
    unknown = [id_ for id_, name in names.items() if name is None]
    if unknown:
        where = f"are not in {MAPPING}" if mapping else f"match no image, and {MAPPING} does not exist"
        raise UserError(f"{path}: {len(unknown):,} ids {where} (first {', '.join(unknown[:3])})")
    return {id_: str(name) for id_, name in names.items()}


def _meta(id_: str) -> dict[str, int | str]:
    return {"source_id": int(id_) if id_.isdecimal() and len(id_) < 19 else id_}


def _files(folder: Path, split: str) -> tuple[Path, Path] | None:
    for name in SPLIT_FILES[split]:
        pair = folder / f"{name}_caps.txt", folder / f"{name}_ids.txt"
        exists = [path.is_file() for path in pair]
        if all(exists):
            return pair
        if any(exists):
            present, missing = pair if exists[0] else pair[::-1]
            raise UserError(
                f"{present} exists but {missing.name} does not; "
                "add the missing file, or exclude the split with --splits"
            )
    return None


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, with whitespace collapsed.

    Only a line feed ends a line: captions may contain other characters that Python treats as line breaks.

    Raises:
        UserError: the file is not UTF-8.
    """
    return [collapse_whitespace(line) for line in text_lines(path)]


def match_captions_to_ids(captions: list[str], ids: list[str], captions_path: Path, ids_path: Path) -> list[str]:
    """The captions, without trailing empty lines beyond the number of ids.

    Raises:
        UserError: there is neither one caption per id, nor five captions for each of unique ids.
    """
    unique = len(set(ids)) == len(ids)
    allowed = [len(ids) * CAPTIONS_PER_IMAGE, len(ids)] if unique else [len(ids)]
    for number in allowed:
        if len(captions) >= number > 0 and not any(captions[number:]):
            return captions[:number]
    hint = "" if unique else f" (id {next(id_ for id_ in ids if ids.count(id_) > 1)} appears more than once)"
    raise UserError(
        f"{captions_path} has {len(captions):,} captions but {ids_path} has {len(ids):,} ids{hint}; with one id per "
        f"caption, or unique ids with {CAPTIONS_PER_IMAGE} captions each, there must be "
        f"{' or '.join(f'{number:,}' for number in allowed[::-1])} captions"
    )


def _repeat_ids(ids: list[str], captions: Sequence[str]) -> list[str]:
    if len(ids) == len(captions):
        return ids
    return [id_ for id_ in ids for _ in range(CAPTIONS_PER_IMAGE)]


def _mapping(folder: Path, root: Path) -> dict[str, str]:
    for path in dict.fromkeys(place / MAPPING for place in (folder, root, folder.parent)):
        if path.is_file():
            mapping = read_json(path)
            if not isinstance(mapping, dict) or not all(isinstance(name, str) for name in mapping.values()):
                raise UserError(f"{path} must be a JSON object that maps ids to file names")
            return mapping
    return {}


def is_sorted(names: Sequence[str]) -> bool:
    """Whether names are in strictly ascending order, as Flickr30K's are in these files."""
    return all(first < second for first, second in pairwise(names))
