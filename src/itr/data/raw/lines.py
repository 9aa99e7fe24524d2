"""The text files of VSE-infinity, LAPS and D2S-VSE: `train_caps.txt` beside `train_ids.txt`, and `id_mapping.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from itr.data.raw.entries import Entry
from itr.data.raw.files import find_file, read_json, says_something, squeeze, tell
from itr.data.raw.image_folders import ImageFolders
from itr.data.raw.layouts import Layout
from itr.errors import UserError

# The files of a split; of several the first is read: `testall` is COCO's 5,000 images, `test` the first 1,000 of them.
FILES = {"train": ("train",), "val": ("devall", "dev", "val"), "test": ("testall", "test")}
CAPTIONS_AN_IMAGE = 5  # where ids stand once an image
MAPPING = "id_mapping.json"
Namer = Callable[[str, str], str | None]  # file name of an id in a split


def text_layout(root: Path, looks_for: str, images: ImageFolders, namer: Namer, splits: Sequence[str]) -> Layout:
    """The layout of which `splits` are read; `namer` says what an id without a mapping stands for."""
    return Layout(
        "text files",
        looks_for,
        lambda: find_lines(root),
        lambda folder: {split: read_split(folder, root, split, images, namer) for split in splits},
    )


def find_lines(root: Path) -> Path | None:
    """The folder of the caption files: `root`, or one right below it."""
    names = [name for candidates in FILES.values() for name in candidates]
    for name in names:
        found = find_file(root, [f"{name}_caps.txt"])
        if found:
            return found.parent
    return None


def read_split(folder: Path, root: Path, split: str, images: ImageFolders, namer: Namer) -> list[Entry]:
    """The images of one split in the order of its ids; none where its files are not there.

    Args:
        folder: of the caption files.
        root: of the data set; the mapping from ids to file names may lie there.
        split: train, val or test.
        images: where the images are.
        namer: what an id without a mapping stands for.

    Raises:
        UserError: one of its two files is missing, they don't fit each other, or an id has no image.
    """
    paths = _files(folder, split)
    if not paths:
        return []
    captions_path, ids_path = paths
    ids = [line for line in read_lines(ids_path) if line]
    captions = align(read_lines(captions_path), ids, captions_path, ids_path)
    names = _names(dict.fromkeys(ids), _mapping(folder, root), lambda id_: namer(id_, split), ids_path)
    texts: dict[str, list[str]] = {id_: [] for id_ in names}
    blank = []
    for number, (id_, text) in enumerate(zip(_one_a_caption(ids, captions), captions, strict=True), 1):
        if says_something(text):
            texts[id_].append(text)
        else:
            blank.append(f"line {number}")
    tell(f"{captions_path.name}: empty lines left out", blank)
    tell(f"{captions_path.name}: images without a caption left out", [id_ for id_ in texts if not texts[id_]])
    return [Entry(images.find(names[id_]), found, meta=_meta(id_)) for id_, found in texts.items() if found]


def _names(
    ids: Iterable[str], mapping: dict[str, str], namer: Callable[[str], str | None], path: Path
) -> dict[str, str]:
    """The file name of each id."""
    names = {id_: mapping.get(id_) or namer(id_) for id_ in ids}
    unknown = [id_ for id_, name in names.items() if name is None]
    if unknown:
        where = f"are not in {MAPPING}" if mapping else f"have no image, and there is no {MAPPING} beside it"
        raise UserError(f"{path}: {len(unknown):,} ids {where} (first {', '.join(unknown[:3])})")
    return {id_: str(name) for id_, name in names.items()}


def _meta(id_: str) -> dict[str, int | str]:
    return {"source_id": int(id_) if id_.isdecimal() and len(id_) < 19 else id_}


def _files(folder: Path, split: str) -> tuple[Path, Path] | None:
    for name in FILES[split]:
        pair = folder / f"{name}_caps.txt", folder / f"{name}_ids.txt"
        there = [path.is_file() for path in pair]
        if all(there):
            return pair
        if any(there):
            lone, missing = pair if there[0] else pair[::-1]
            raise UserError(f"{lone} is there but {missing.name} is not; put it there, or leave it out by --splits")
    return None


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, whitespace squeezed.

    Only a line feed ends a line: captions may hold other characters that Python takes for an end.

    Raises:
        UserError: it is not in UTF-8.
    """
    raw = path.read_bytes()
    try:
        lines = raw.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        number = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {number}, is not in UTF-8 ({error.reason}); convert the file") from None
    return [squeeze(line) for line in (lines[:-1] if not lines[-1] else lines)]


def align(captions: list[str], ids: list[str], captions_path: Path, ids_path: Path) -> list[str]:
    """The captions without empty lines at the end that no id asks for.

    Raises:
        UserError: captions and ids are not of one number, nor five captions for each of ids that stand once.
    """
    once = len(set(ids)) == len(ids)
    allowed = [len(ids) * CAPTIONS_AN_IMAGE, len(ids)] if once else [len(ids)]
    for wanted in allowed:
        if len(captions) >= wanted > 0 and not any(captions[wanted:]):
            return captions[:wanted]
    hint = "" if once else f" (id {next(id_ for id_ in ids if ids.count(id_) > 1)} stands there more than once)"
    raise UserError(
        f"{captions_path} has {len(captions):,} captions and {ids_path} {len(ids):,} ids{hint}, which don't fit: "
        f"one id a caption, or each id once with {CAPTIONS_AN_IMAGE} captions, needs "
        f"{' or '.join(f'{number:,}' for number in allowed[::-1])} captions"
    )


def _one_a_caption(ids: list[str], captions: Sequence[str]) -> list[str]:
    if len(ids) == len(captions):
        return ids
    return [id_ for id_ in ids for _ in range(CAPTIONS_AN_IMAGE)]


def _mapping(folder: Path, root: Path) -> dict[str, str]:
    for place in dict.fromkeys([folder, root, folder.parent]):
        if (place / MAPPING).is_file():
            found = read_json(place / MAPPING)
            if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
                raise UserError(f"{place / MAPPING} must map ids to file names")
            return found
    return {}


def is_ascending(names: Sequence[str]) -> bool:
    """Whether names stand in alphabetical order, as Flickr30K's do in these files."""
    return all(first < second for first, second in pairwise(names))
