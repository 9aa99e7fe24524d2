"""Helpers shared by the readers of raw data sets: finding and reading files, and reporting skipped items."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from itr.data.tables.reading import parse_json
from itr.data.tables.text_files import UNREADABLE, open_text
from itr.errors import UserError


def collapse_whitespace(text: str) -> str:
    """Replace every run of whitespace with one space, and strip the ends."""
    return " ".join(text.split())


def has_visible_text(text: str) -> bool:
    """Whether a text has more than whitespace and control characters."""
    return any(character.isprintable() and not character.isspace() for character in text)


def report_examples(what: str, items: Sequence[object]) -> None:
    """Print how many items there are, and the first five; print nothing for an empty list."""
    if items:
        more = ", ..." if len(items) > 5 else ""
        print(f"{what}: {len(items):,} ({', '.join(map(str, items[:5]))}{more})")


def require_folder(root: str) -> Path:
    """The folder of a data set.

    Raises:
        UserError: it does not exist.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"folder {folder} does not exist; pass the folder of the raw data set as --root")
    return folder


def find_file(root: Path, names: Iterable[str]) -> Path | None:
    """The file with one of these names in `root`, or else in a folder directly below it.

    Raises:
        UserError: several files match.
    """
    candidates = list(names)
    for folders in ([root], sorted(path for path in root.iterdir() if path.is_dir())):
        found = [folder / name for folder in folders for name in candidates if (folder / name).is_file()]
        if len(found) > 1:
            paths = " and ".join(map(str, found))
            raise UserError(f"found several candidates: {paths}; keep one, or pass its folder as --root")
        if found:
            return found[0]
    return None


def read_json(path: Path) -> Any:
    """The contents of a JSON file.

    Raises:
        UserError: the file could not be read, is not valid JSON, or has a key twice, of which one would be lost.
    """
    try:
        with open_text(path, newline="") as stream:
            text = stream.read()
    except UNREADABLE as error:
        raise UserError(f"could not read {path} as JSON: {error}") from None
    return parse_json(text, str(path))
