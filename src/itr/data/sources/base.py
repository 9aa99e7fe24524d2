"""The contract of a source: what finds the images and captions of a raw data set for `itr prepare`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from itr.data.raw.entries import ImageEntry, RawData
from itr.errors import UserError


class Source(ABC):
    """Finds the images and captions of a raw data set; `itr prepare` checks them and writes the shards.

    The arguments of `__init__` are the options of the command, so they need type annotations. A data class is enough.
    The first line of the docstring and its `Args` section make the help. An argument with the name of an option that
    all sources have, such as `seed`, gets the same value as that option.
    """

    @abstractmethod
    def read(self) -> RawData:
        """The images of each split with their captions, in an order that is the same every time.

        Raises:
            UserError: a file is missing or damaged; the message says what to do.
        """


def check_read(found: object, name: str) -> RawData:
    """What a source returned, with the source's name for the manifest.

    Args:
        found: what `read` returned.
        name: of the source, as on the command line.

    Raises:
        UserError: it is not `RawData`, or an entry is malformed.
    """
    if not isinstance(found, RawData):
        raise UserError(f"{name}.read() returned {_kind(found)}; it must return itr.data.sources.RawData")
    if not isinstance(found.entries, dict):
        raise UserError(f"the entries of {name} are {_kind(found.entries)}; give a dict of a list for each split")
    for split, entries in found.entries.items():
        for number, entry in enumerate(entries):
            if problem := _problem(entry):
                raise UserError(f"entry {number} of the split {split} of {name}: {problem}")
    found.image_root = Path(found.image_root)
    found.source = found.source or name
    return found


def _problem(entry: object) -> str:
    """What is wrong with the types of an entry; empty if nothing is."""
    if not isinstance(entry, ImageEntry):
        return f"it is {_kind(entry)}; give an itr.data.sources.ImageEntry"
    for name, texts in (("captions", entry.captions), ("dense", entry.dense)):
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            return f"its {name} are {_kind(texts)} {str(texts)[:60]!r}; give a list of str"
    return "" if isinstance(entry.image, str) else f"its image is {_kind(entry.image)}; give a path as str"


def _kind(value: object) -> str:
    return f"of the type {type(value).__name__}"
