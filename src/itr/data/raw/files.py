"""Small things that the readers of raw data sets share: finding and reading files, and telling what was odd."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from itr.errors import UserError


def squeeze(text: str) -> str:
    """The text with every run of whitespace as one space."""
    return " ".join(text.split())


def says_something(text: str) -> bool:
    """Whether a text holds more than blanks and control characters."""
    return any(character.isprintable() and not character.isspace() for character in text)


def tell(what: str, found: Sequence[object]) -> None:
    """Say how many there are, and name the first ones."""
    if found:
        more = ", ..." if len(found) > 5 else ""
        print(f"{what}: {len(found):,} ({', '.join(map(str, found[:5]))}{more})")


def find_folder(root: str) -> Path:
    """The folder of a data set.

    Raises:
        UserError: there is none.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; --root is the folder of the raw data set")
    return folder


def find_file(root: Path, names: Iterable[str]) -> Path | None:
    """The file of one of these names in `root`, or else in a folder right below it.

    Raises:
        UserError: there are several.
    """
    wanted = list(names)
    for folders in ([root], sorted(path for path in root.iterdir() if path.is_dir())):
        found = [folder / name for folder in folders for name in wanted if (folder / name).is_file()]
        if len(found) > 1:
            raise UserError(f"{' and '.join(map(str, found))} are both there; leave one, or give its folder as --root")
        if found:
            return found[0]
    return None


def read_json(path: Path) -> Any:
    """The contents of a JSON file.

    Raises:
        UserError: it is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} can't be read as JSON: {error}") from None
