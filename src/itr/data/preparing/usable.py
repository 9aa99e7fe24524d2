"""Select the images and captions of a source that can be written: clean, skip or reject the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from tqdm import tqdm

from itr.data.preparing.image_files import check_image_files, check_inner_images, format_problems
from itr.data.raw.entries import ImageEntry, RawData, check_images_are_unique
from itr.data.shards.captions import CaptionCleaner
from itr.errors import UserError

# By split; each entry with a string that identifies the version of its file.
UsableEntries = dict[str, list[tuple[ImageEntry, str]]]


def select_usable(raw: RawData, bad_images: Literal["refuse", "skip"]) -> UsableEntries:
    """The entries of a source that can be written, in its order, without empty splits.

    Raises:
        UserError: nothing remains, an image appears twice, or files are bad and must not be skipped.
    """
    entries = _with_captions(raw)
    check_images_are_unique(entries)
    if not raw.image_root.is_dir() and any(entries.values()):
        raise UserError(f"image folder {raw.image_root} does not exist")
    found = {split: _check_files(raw, split, part, bad_images) for split, part in entries.items()}
    found = {split: part for split, part in found.items() if part}
    if not found:
        raise UserError(f"{raw.source}: found no usable image with a caption")
    return found


def _with_captions(raw: RawData) -> dict[str, list[ImageEntry]]:
    """The entries with cleaned captions; those without captions are skipped and reported."""
    cleaner = CaptionCleaner()
    kept: dict[str, list[ImageEntry]] = {}
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
            print(f"{split}: skipped {len(entries) - len(kept[split])} images without a caption")
    for notice in cleaner.notices():
        print(notice)
    return kept


def _check_files(
    raw: RawData, split: str, entries: list[ImageEntry], bad_images: Literal["refuse", "skip"]
) -> list[tuple[ImageEntry, str]]:
    """Check every image file; skip or reject those that are missing or not images."""
    checks: list[tuple[str, str]] = []
    root, names = raw.image_root, [entry.image for entry in entries]
    with tqdm(total=len(entries), desc=f"checking {split}", unit=" images", disable=None) as bar:
        for block in [check_inner_images(raw.inner, names)] if raw.inner else check_image_files(root, names):
            checks += block
            bar.update(len(block))
    problems = [(entry.image, problem) for entry, (_, problem) in zip(entries, checks, strict=True) if problem]
    if problems:
        message = format_problems(problems, len(entries), split, root)
        if bad_images == "refuse":
            raise UserError(f"{message}\nFix them, check --image_root, or skip them with --bad_images skip")
        print(f"skipped: {message}")
    return [(entry, stamp) for entry, (stamp, problem) in zip(entries, checks, strict=True) if not problem]
