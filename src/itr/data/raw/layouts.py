"""Which of its layouts a data set has, and the checks on what was read from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itr.data.raw.dense import attach_dense
from itr.data.raw.entries import Entry, RawData, check_splits_are_apart
from itr.errors import UserError

SPLITS = ("train", "val", "test")


@dataclass
class Layout:
    """One way in which the files of a data set are laid out.

    Attributes:
        title: what it is called in a message.
        looks_for: the files that tell it.
        find: gives its files or their folder, or nothing where they are not there.
        read: gives the images of each split from what was found.
    """

    title: str
    looks_for: str
    find: Callable[[], Any]
    read: Callable[[Any], dict[str, list[Entry]]]


def read_layout(root: Path, layouts: dict[str, Layout], wanted: str) -> tuple[str, dict[str, list[Entry]]]:
    """The layout that `root` has, which is printed, and the images of each split read from it.

    Raises:
        UserError: it has none, or several, or not the one that is wanted.
    """
    looked_at = layouts if wanted == "auto" else {wanted: layouts[wanted]}
    there = {name: found for name, layout in looked_at.items() if (found := layout.find())}
    if not there:
        listed = "".join(f"\n  {name}: {layout.looks_for}" for name, layout in looked_at.items())
        what = "none of the known layouts" if wanted == "auto" else f"no {layouts[wanted].title}"
        raise UserError(f"{root} has {what}; looked there and one folder below for{listed}")
    if len(there) > 1:
        listed = ", ".join(f"{name} ({_shown(found)})" for name, found in there.items())
        raise UserError(f"{root} has several layouts: {listed}; choose by --layout {' or '.join(there)}")
    [(name, found)] = there.items()
    print(f"layout {name}: {layouts[name].title}, {_shown(found)}")
    return name, layouts[name].read(found)


def _shown(found: Path | dict[str, Path]) -> str:
    return str(found) if isinstance(found, Path) else ", ".join(map(str, found.values()))


@dataclass
class Collection:
    """A data set as its reader found it, before it is checked as a whole.

    Attributes:
        source: its name.
        image_root: folder that the images' paths start from.
        entries: the images of each split.
        known: number of images of each split where they are published.
        settings: what of the options the result depends on.
        published_order: whether the training images stand in the order in which line-by-line files list them.
    """

    source: str
    image_root: Path
    entries: dict[str, list[Entry]]
    known: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    published_order: bool = False

    def finish(self, splits: str | None, dense: str | None) -> RawData:
        """Keep the wanted splits, check them, and attach dense captions.

        Raises:
            UserError: nothing is there, an image stands twice, or the dense captions don't fit.
        """
        wanted = split_names(splits)
        order = [*SPLITS, *sorted(set(self.entries) - set(SPLITS))]
        found = {name: self.entries[name] for name in order if self.entries.get(name)}
        data = RawData(self.image_root, {n: e for n, e in found.items() if not wanted or n in wanted}, self.source)
        if not data.entries:
            raise UserError(f"{self.source}: there is no image with a caption in {splits or 'any split'}")
        check_splits_are_apart(data.entries)
        data.settings = dict(self.settings)
        attach_dense(data, dense, self.published_order)
        self._compare(data, wanted)
        return data

    def _compare(self, data: RawData, wanted: Sequence[str]) -> None:
        for split, number in self.known.items():
            images = len(data.entries.get(split, []))
            if images != number and (not wanted or split in wanted):
                print(f"NOTE: {split} has {images:,} images here; the published split has {number:,}")


def split_names(splits: str | None) -> list[str]:
    """The splits that an option names, none where it names no choice.

    Raises:
        UserError: a name is unknown.
    """
    names = [name.strip() for name in (splits or "").split(",") if name.strip()]
    for name in names:
        if name not in SPLITS:
            raise UserError(f"--splits has {name!r}; known are {', '.join(SPLITS)}")
    return names
