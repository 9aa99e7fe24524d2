"""Finding the shards of a run: a folder that `itr prepare` wrote, or any tars by path, pattern or URL."""

from __future__ import annotations

import io
import itertools
import os
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import numpy as np

from itr.data.shards.counts import count_shards
from itr.data.shards.patterns import expand_braces, find_tars, names_tars, near_matches, split_list
from itr.data.shards.remote import AbsentError, check_kind, is_url, read_bytes, redacted
from itr.data.shards.schema import MANIFEST, POSITIVES, STAGING, Manifest, Place, Split
from itr.data.shards.seen import Seen
from itr.errors import UserError, refusing
from itr.files.states import FileState


class NoSplitError(UserError):
    """The shard folder exists, but not this split of it; the message lists what is there."""


class NoTarsError(UserError):
    """No tar has a name that was given."""


def find_split(root: str | Path, split: str, cache: str | None = None, strict: bool = True) -> Split:
    """The shards of a split, each with its place.

    Args:
        root: a folder or its URL, with a manifest or with tars in `root/split`; or a list of tars, which is a single
            split under any name.
        split: a name, or a list of tars, relative to `root` if that is a folder.
        cache: folder for copies of shards that come from a URL.
        strict: whether every shard of the manifest must exist.

    Raises:
        UserError: no shards were found (the message lists what is there instead), or itr does not read this kind of
            location.
    """
    root = normalize_root(root)
    base, patterns = _listed(root, split)
    if patterns:
        found = _shards([tar for pattern in patterns for tar in _expanded(pattern, base)], base, cache or "")
    else:
        found = _in_folder(root, split, cache or "", strict)
    if not found.images:
        raise UserError(f"the tars of split {split!r} of {redacted(root)} hold no images")
    return found


def find_places(root: str | Path, split: str, cache: str | None = None) -> list[Place]:
    """The places of the tars that `find_split` finds; none if a manifest lists them. The tars are not opened.

    Raises:
        UserError: as `find_split`.
    """
    root = normalize_root(root)
    base, patterns = _listed(root, split)
    if patterns:
        return _places([tar for pattern in patterns for tar in _expanded(pattern, base)], cache or "")
    if is_url(root) or not Path(root).is_dir() or (Path(root) / MANIFEST).exists():
        return []
    return _places(find_tars(_below(root, f"{split}/*.tar")), cache or "")


def _listed(root: str, split: str) -> tuple[str, list[str]]:
    """The lists of tars of a split, and the folder that they are relative to; none if the split is a name."""
    patterns = _patterns(root, split)
    return ("", patterns or split_list(root)) if names_tars(root) else (root, patterns)


def resolve(root: str, split: str, name: str) -> tuple[str, str]:
    """The root and the name of a split; a split that is given as a list of tars gets the name `name`.

    Raises:
        UserError: it runs a program, or is a URL that itr does not read.
    """
    patterns = _patterns(root, split)
    if not patterns:
        return root, split
    base = "" if names_tars(root) else root
    return ",".join(_below(base, pattern) for pattern in patterns), name


def _patterns(root: str, split: str) -> list[str]:
    """The tars that a split lists, relative to `root` if that is a folder; empty if the split is a name."""
    base = "" if names_tars(root) else root
    path = "" if is_url(base) or is_url(split) else _below(base, split)
    patterns = [split] if os.path.isfile(path) else split_list(split, base)
    for pattern in patterns:
        check_kind(pattern)
    if os.path.isdir(path) or not (names_tars(split, base) or is_url(split)):
        return []
    patterns = [pattern.removeprefix("file://") for pattern in patterns]
    return [pattern if names_tars(pattern, base) else f"{pattern.rstrip('/')}/*.tar" for pattern in patterns]


def normalize_root(root: str | Path) -> str:
    """A folder, URL or list of tars as text, with `file://` and `~` replaced by paths.

    Raises:
        UserError: it runs a program, or is a URL that itr does not read.
    """
    text = str(root)
    pieces = [piece.removeprefix("file://") for piece in (split_list(text) if names_tars(text) else [text])]
    for piece in pieces:
        check_kind(piece)
    return ",".join(piece.rstrip("/") if is_url(piece) else _from_home(piece) for piece in pieces)


def read_positives(root: str | Path, split: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The true matches of a split, as `write_positives` stores them; None if it has none."""
    root = normalize_root(root)
    if names_tars(root) or names_tars(split) or is_url(split):
        return None
    try:
        where = _below(root, f"{split}/{POSITIVES}")
        data = read_bytes(where) if is_url(where) else Path(where).read_bytes()
    except (AbsentError, FileNotFoundError, NotADirectoryError):
        return None
    with refusing(f"{redacted(where)} is not a list of true matches; prepare the shards again"):
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            pairs = arrays["image_id"], arrays["caption_id"]
        if any(ids.ndim != 1 or ids.dtype.kind not in "iu" for ids in pairs) or len(pairs[0]) != len(pairs[1]):
            raise ValueError("it needs image_id and caption_id, whole numbers of the same length")
        return pairs


def _in_folder(root: str, split: str, cache: str, strict: bool) -> Split:
    """The split that the manifest describes; without a manifest, the tars in `root/split`."""
    if not is_url(root) and not Path(root).is_dir():
        raise UserError(f"the shard folder {root} does not exist; `itr prepare --help` shows how to make one")
    where = _below(root, MANIFEST)
    try:
        manifest = Manifest.parse(read_bytes(where) if is_url(root) else Path(where).read_bytes(), redacted(where))
    except (AbsentError, FileNotFoundError):
        if not is_url(root) and (Path(root) / STAGING).is_dir():
            message = f"{root} is not finished; run the same `itr prepare` command again to continue"
            raise UserError(message) from None
        pattern = _below(root, f"{split}/*.tar")
        try:
            return _shards(find_tars(pattern) or _refuse(pattern, root), root, cache)
        except NoTarsError as error:
            raise NoSplitError(str(error)) from None
    if split not in manifest.splits:
        known = ", ".join(sorted(manifest.splits)) or "none"
        raise NoSplitError(f"{redacted(root)} has no split {split!r} (it has: {known}){_other_split(split, known)}")
    found = manifest.splits[split]
    for shard in found.shards:
        where, seen = _below(root, shard.path), Seen(shard.bytes, shard.sha256)
        if not is_url(root):
            with suppress(OSError):
                seen.state = FileState.of(where)
            if strict and not os.path.isfile(where):
                raise UserError(f"shard {where} of the manifest does not exist; prepare the shards again")
        shard.place = Place(where, version=shard.sha256 or str(shard.bytes), cache=cache, seen=seen)
    return found


def _other_split(split: str, known: str) -> str:
    """What to do about a split that does not exist: a folder of own images may have no `test`."""
    example = "val" if "val" in known.split(", ") else known.partition(", ")[0]
    return f"; name another one, as --data.{split}_split {example} or --split {example} does" * (
        split in ("val", "test")
    )


def _shards(locations: list[str], root: str, cache: str) -> Split:
    """The shards at these locations, without duplicates."""
    shards = count_shards(_places(locations, cache))
    for shard in shards:
        shard.path = shard.path.removeprefix(f"{root}/") if root else shard.path
    return Split(shards)


def _places(locations: list[str], cache: str) -> list[Place]:
    locations = list(dict.fromkeys(locations))
    folders = _distinct_parts([location.partition("?")[0].rpartition("/")[0] for location in locations])
    return [Place(location, folder, cache=cache) for location, folder in zip(locations, folders, strict=True)]


def _distinct_parts(folders: list[str]) -> list[str]:
    """Each folder without the leading part that all share; empty if all are the same folder."""
    if len(set(folders)) < 2:
        return [""] * len(folders)
    parts = [folder.split("/") for folder in folders]
    common = next(i for i, names in enumerate(itertools.zip_longest(*parts)) if len(set(names)) > 1)
    return ["/".join(part[common:]) or "." for part in parts]


def _expanded(pattern: str, root: str) -> list[str]:
    """The tars of one pattern, in order; a pattern that is the path of a file means that file.

    Raises:
        UserError: some of them do not exist.
    """
    check_kind(pattern)
    where = _below(root, pattern)
    if os.path.isfile(where):
        return [where]
    names = list(expand_braces(where))
    found = [find_tars(name) for name in names]
    missing = [name for name, tars in zip(names, found, strict=True) if not tars]
    if len(missing) == len(names):
        _refuse(where, root)
    if missing:
        counted = f"{len(missing)} of the {len(names)} tars of {redacted(where)} are missing"
        raise UserError(
            f"{counted}, the first is {redacted(missing[0])}{near_matches(where)}; fetch them or correct the list"
        )
    return list(itertools.chain.from_iterable(found))


def _refuse(pattern: str, root: str) -> NoReturn:
    near = near_matches(pattern)
    hint = "`itr prepare --help` shows how to make them"
    if is_url(pattern):
        hint = "correct the list" if near else "the server does not list its files; name them: {00000..00041}.tar"
    elif root:
        hint = f"lists of tars are relative to {root}, and {hint}"
    raise NoTarsError(f"no shards match {redacted(pattern)}{near}; {hint}")


def _below(base: str, name: str) -> str:
    if is_url(name) or not base:
        return name
    if is_url(base):
        return f"{base.rstrip('/')}/{name}"
    return str(Path(base) / _from_home(name))


def _from_home(path: str) -> str:
    try:
        return str(Path(path).expanduser())
    except (RuntimeError, ValueError) as error:
        raise UserError(f"could not expand {path!r}: {error} Write out the folder") from None
