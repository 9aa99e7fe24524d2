"""Which of a source's images and captions can be written: what is cleaned, left out or refused before writing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from itr.data.preparing.image_files import listed, look_at_files
from itr.data.raw.entries import Entry, RawData, check_splits_are_apart
from itr.data.shards.captions import CaptionCleaner
from itr.errors import UserError

Usable = dict[str, list[tuple[Entry, str]]]  # by split; with each entry a text that tells the state of its file


def usable(raw: RawData, bad_images: Literal["refuse", "skip"]) -> Usable:
    """The entries of a source that can be written, in its order, splits without any left out.

    Raises:
        UserError: if nothing remains, an image stands in two places, or files are bad and not to be skipped.
    """
    entries = _with_captions(raw)
    check_splits_are_apart(entries)
    if not raw.image_root.is_dir() and any(entries.values()):
        raise UserError(f"there is no folder of images {raw.image_root}")
    found = {split: _check_files(raw.image_root, split, part, bad_images) for split, part in entries.items()}
    found = {split: part for split, part in found.items() if part}
    if not found:
        raise UserError(f"{raw.source} finds no image with a caption that can be used")
    return found


def _with_captions(raw: RawData) -> dict[str, list[Entry]]:
    """The entries with clean captions; those that have none are left out and told."""
    cleaner = CaptionCleaner()
    kept: dict[str, list[Entry]] = {}
    for split, entries in raw.entries.items():
        clean = [
            replace(
                entry,
                captions=cleaner.clean(entry.captions, entry.image),
                dense=cleaner.clean(entry.dense, entry.image),
            )
            for entry in entries
        ]
        kept[split] = [entry for entry in clean if entry.captions]
        if len(kept[split]) < len(entries):
            print(f"{split}: {len(entries) - len(kept[split])} images without a caption are left out")
    for notice in cleaner.notices():
        print(notice)
    return kept


def _check_files(
    root: Path, split: str, entries: list[Entry], bad_images: Literal["refuse", "skip"]
) -> list[tuple[Entry, str]]:
    """Look at the file of every image; drop or refuse those that are missing or no image."""
    looked: list[tuple[str, str]] = []
    with tqdm(total=len(entries), desc=f"looking at {split}", unit=" images", disable=None) as bar:
        for block in look_at_files(root, [entry.image for entry in entries]):
            looked += block
            bar.update(len(block))
    problems = [(entry.image, problem) for entry, (_, problem) in zip(entries, looked, strict=True) if problem]
    if problems:
        message = listed(problems, len(entries), split, root)
        if bad_images == "refuse":
            raise UserError(f"{message}\nMend them, see --image_root, or leave them out by --bad_images skip")
        print(f"left out: {message}")
    return [(entry, stamp) for entry, (stamp, problem) in zip(entries, looked, strict=True) if not problem]
