"""Detection of a data set's file layout, and checks of what was read from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itr.data.raw.dense import attach_dense
from itr.data.raw.entries import ImageEntry, RawData, check_images_are_unique
from itr.data.raw.files import require_folder
from itr.data.raw.image_folders import ImageFolders
from itr.errors import UserError

SPLITS = ("train", "val", "test")


@dataclass
class RawLayout:
    """One way to lay out the files of a data set.

    Attributes:
        title: its name in messages.
        looks_for: the files that identify it, for messages.
        find: returns its files or their folder; a falsy value if they do not exist.
        read: reads the images of each split, given the result of `find`.
    """

    title: str
    looks_for: str
    find: Callable[[], Any]
    read: Callable[[Any], dict[str, list[ImageEntry]]]


def read_layout(root: Path, layouts: dict[str, RawLayout], requested: str) -> tuple[str, dict[str, list[ImageEntry]]]:
    """Detect the layout of `root`, print it, and read the images of each split.

    Raises:
        UserError: no layout matches, several do, or the requested one does not.
    """
    candidates = layouts if requested == "auto" else {requested: layouts[requested]}
    matches = {name: found for name, layout in candidates.items() if (found := layout.find())}
    if not matches:
        expected = "".join(f"\n  {name}: {layout.looks_for}" for name, layout in candidates.items())
        what = "files of any known layout" if requested == "auto" else layouts[requested].title
        raise UserError(f"found no {what} in {root} or in a folder directly below it; expected:{expected}")
    if len(matches) > 1:
        listing = ", ".join(f"{name} ({_format_paths(found)})" for name, found in matches.items())
        raise UserError(f"{root} has files of several layouts: {listing}; pass --layout {' or '.join(matches)}")
    [(name, found)] = matches.items()
    print(f"layout {name}: {layouts[name].title}, {_format_paths(found)}")
    return name, layouts[name].read(found)


def _format_paths(found: Path | dict[str, Path]) -> str:
    return str(found) if isinstance(found, Path) else ", ".join(map(str, found.values()))


@dataclass
class RawFolder:
    """The folder of a raw data set, as its source finds it.

    Attributes:
        path: the folder of its files.
        images: index of its images.
        splits: the splits to read.
    """

    path: Path
    images: ImageFolders
    splits: list[str]

    @classmethod
    def open(cls, root: str, image_root: str | None, splits: str | None) -> RawFolder:
        """From the options `--root`, `--image_root` and `--splits`.

        Raises:
            UserError: a folder does not exist, or a split is unknown.
        """
        folder = require_folder(root)
        return cls(folder, ImageFolders.under(folder, image_root), parse_split_names(splits) or list(SPLITS))


@dataclass
class Collection:
    """A data set as read from its files, before the final checks.

    Attributes:
        source: its name.
        image_root: folder that the image paths are relative to.
        entries: the images of each split.
        known: published number of images of each split, where there is one.
        settings: options that affect the result.
        published_order: whether the training images are in the order of the published line-by-line files.
    """

    source: str
    image_root: Path
    entries: dict[str, list[ImageEntry]]
    known: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    published_order: bool = False

    def finish(self, splits: str | None, dense: str | None) -> RawData:
        """Select the requested splits, check them, and attach dense captions.

        Raises:
            UserError: no image is left, an image appears twice, or the dense captions do not match.
        """
        requested = parse_split_names(splits)
        order = [*SPLITS, *sorted(set(self.entries) - set(SPLITS))]
        found = {name: self.entries[name] for name in order if self.entries.get(name)}
        selected = {name: entries for name, entries in found.items() if not requested or name in requested}
        data = RawData(self.image_root, selected, self.source)
        if not data.entries:
            raise UserError(f"{self.source}: no image with a caption in {splits or 'any split'}")
        check_images_are_unique(data.entries)
        data.settings = dict(self.settings)
        attach_dense(data, dense, self.published_order)
        self._compare_with_published(data, requested)
        return data

    def _compare_with_published(self, data: RawData, requested: Sequence[str]) -> None:
        for split, number in self.known.items():
            images = len(data.entries.get(split, []))
            if images != number and (not requested or split in requested):
                print(f"NOTE: {split} has {images:,} images; the published split has {number:,}")


def parse_split_names(splits: str | None) -> list[str]:
    """The splits listed in an option; empty if it is not set.

    Raises:
        UserError: a name is unknown.
    """
    names = [name.strip() for name in (splits or "").split(",") if name.strip()]
    for name in names:
        if name not in SPLITS:
            raise UserError(f"--splits has the unknown split {name!r}; choose from {', '.join(SPLITS)}")
    return names
