"""The images below a folder: the one way in which folders are searched."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from itr.errors import UserError
from itr.images.kinds import describe_kinds, is_image

RESOURCE_FORK = "._"  # begins the names of macOS metadata, which have the extension of the file they belong to
MOST_VISITS = 100  # of one folder, by different links
Place = tuple[int, int]  # device and inode of a folder


@dataclass
class FoundImages:
    """What a folder contains.

    Attributes:
        folder: the folder that was searched.
        names: paths of the images relative to it, sorted, with `/` between folders.
        others: paths of the files that are not read, relative to it.
        loops: links that lead back to a folder that contains them, relative to it; they are not followed.
        unreadable: folders that could not be listed, with the reason.
    """

    folder: Path
    names: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def paths(self) -> list[Path]:
        """The image files, in the order of `names`."""
        return [self.folder / name for name in self.names]

    def notices(self) -> list[str]:
        """One line for each kind of thing that was found but not read."""
        lines = []
        if self.others:
            lines.append(f"{self.folder}: not read: {describe_kinds(self.others)}")
        for what, found in (("links back to a folder above", self.loops), ("could not list", self.unreadable)):
            if found:
                more = f" and {len(found) - 5} more" if len(found) > 5 else ""
                lines.append(f"{self.folder}: {what}, not followed: {', '.join(found[:5])}{more}")
        return lines


def find_images(folder: Path) -> FoundImages:
    """Every image below a folder. Links to folders and files are followed, wherever they lead.

    Raises:
        UserError: links lead to the same folder over and over.
    """
    found = FoundImages(folder)
    visits: Counter[Place] = Counter()
    for name in _files(folder, "", (_place(folder),), visits, found):
        base = name.rpartition("/")[2]
        (found.names if is_image(base) and not base.startswith(RESOURCE_FORK) else found.others).append(name)
    found.names.sort()
    return found


def _files(
    folder: Path, prefix: str, above: tuple[Place, ...], visits: Counter[Place], found: FoundImages
) -> Iterator[str]:
    """The files below `folder`, whose path relative to the searched folder is `prefix`."""
    try:
        with os.scandir(folder) as entries:
            items = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        found.unreadable.append(f"{prefix or '.'} ({error.strerror})")
        return
    for item in items:
        name = f"{prefix}{item.name}"
        if not os.path.isdir(item.path):  # DirEntry.is_dir raises for a link to itself
            yield name
            continue
        place = _place(Path(item.path))
        if place in above:
            found.loops.append(name)
            continue
        visits[place] += 1
        if visits[place] > MOST_VISITS:
            raise UserError(f"more than {MOST_VISITS} links below {found.folder} lead to {item.path}; remove some")
        yield from _files(Path(item.path), f"{name}/", (*above, place), visits, found)


def _place(folder: Path) -> Place:
    status = folder.stat()
    return status.st_dev, status.st_ino
