"""Where the shards of a run are: in a folder that `itr prepare` wrote, or tars of others by path, pattern or URL.

A list of tars is text: `tars/{00000..00041}.tar`, `tars/*.tar`, `https://host/a.tar`, or several with commas between
them. `{00000..00041}` counts, `{a,b}` lists, `*` stands for what is there.
"""

from __future__ import annotations

import difflib
import io
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from itr.data.shards.counts import count_shards
from itr.data.shards.remote import AbsentError, check_kind, find, is_url, read_bytes, shown
from itr.data.shards.schema import MANIFEST, POSITIVES, STAGING, Manifest, Place, Split
from itr.errors import UserError, refusing

MOST = 10**6  # tars that a pattern may stand for


def names_tars(text: str) -> bool:
    """Whether the text lists tars, rather than naming a folder or a split."""
    return any("*" in piece or "{" in piece or piece.partition("?")[0].endswith(".tar") for piece in _pieces(text))


def find_split(root: str | Path, split: str, cache: str | None = None, strict: bool = True) -> Split:
    """The shards of a split, each with its place.

    Args:
        root: a folder or its URL, with a manifest or with tars in `root/split`; or a list of tars, which is one split
            whatever it is called.
        split: a name, or a list of tars of its own, relative to `root` where that is a folder.
        cache: folder for copies of shards that come from a URL.
        strict: whether every shard of the manifest must be there.

    Raises:
        UserError: nothing is there, with what lies near; or a kind of location that itr does not read.
    """
    root = locate(root)
    where, _ = resolve(root, split, "")
    if names_tars(where):
        base = "" if names_tars(root) else root
        pieces = _pieces(where)
        found = _shards([tar for piece in pieces for tar in _expanded(piece, base)], base, cache or "")
    else:
        found = _in_folder(root, split, cache or "", strict)
    if not found.images:
        raise UserError(f"the tars of split {split!r} of {shown(root)} hold no images")
    return found


def resolve(root: str, split: str, name: str) -> tuple[str, str]:
    """Where a split is, and what it is called: one that is a list of tars of its own is called `name`.

    Raises:
        UserError: it runs a program, or is a URL that itr does not read.
    """
    for piece in _pieces(split):
        check_kind(piece)
    if not (names_tars(split) or is_url(split)):
        return root, split
    base = "" if names_tars(root) else root
    pieces = [_below(base, piece.removeprefix("file://")) for piece in _pieces(split)]
    return ",".join(piece if names_tars(piece) else f"{piece.rstrip('/')}/*.tar" for piece in pieces), name


def locate(root: str | Path) -> str:
    """A folder, URL or list of tars as text: `file://` and `~` become paths.

    Raises:
        UserError: it runs a program, or is a URL that itr does not read.
    """
    pieces = [piece.removeprefix("file://") for piece in (_pieces(str(root)) if names_tars(str(root)) else [str(root)])]
    for piece in pieces:
        check_kind(piece)
    return ",".join(piece.rstrip("/") if is_url(piece) else _from_home(piece) for piece in pieces)


def read_positives(root: str | Path, split: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The true matches of a split as `write_positives` keeps them, or None where there are none."""
    root = locate(root)
    if names_tars(root) or names_tars(split) or is_url(split):
        return None
    try:
        where = _below(root, f"{split}/{POSITIVES}")
        data = read_bytes(where) if is_url(where) else Path(where).read_bytes()
    except (AbsentError, FileNotFoundError, NotADirectoryError):
        return None
    with refusing(f"{shown(where)} is no list of true matches; prepare the shards again"):
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            pairs = arrays["image_id"], arrays["caption_id"]
        if any(ids.ndim != 1 or ids.dtype.kind not in "iu" for ids in pairs) or len(pairs[0]) != len(pairs[1]):
            raise ValueError("it needs image_id and caption_id, as many whole numbers each")
        return pairs


def _in_folder(root: str, split: str, cache: str, strict: bool) -> Split:
    """By the manifest, or what lies in `root/split`."""
    if not is_url(root) and not Path(root).is_dir():
        raise UserError(f"there is no shard folder {root}; `itr prepare --help` tells how to make one")
    where = _below(root, MANIFEST)
    try:
        manifest = Manifest.parse(read_bytes(where) if is_url(root) else Path(where).read_bytes(), shown(where))
    except (AbsentError, FileNotFoundError):
        if not is_url(root) and (Path(root) / STAGING).is_dir():
            message = f"{root} is not finished; give the `itr prepare` command again, it goes on where it was"
            raise UserError(message) from None
        pattern = _below(root, f"{split}/*.tar")
        return _shards(_matching(pattern) or _refuse(pattern, root), root, cache)
    if split not in manifest.splits:
        known = ", ".join(sorted(manifest.splits)) or "none"
        raise UserError(f"{shown(root)} has no split {split!r} (it has: {known})")
    found = manifest.splits[split]
    for shard in found.shards:
        shard.place = Place(_below(root, shard.path), version=shard.sha256 or str(shard.bytes), cache=cache)
        if strict and not is_url(root) and not os.path.isfile(shard.place.location):
            raise UserError(f"shard {shard.place.location} of the manifest is missing; prepare the shards again")
    return found


def _shards(locations: list[str], root: str, cache: str) -> Split:
    """The shards at these locations, each once."""
    locations = list(dict.fromkeys(locations))
    folders = _told_apart([location.partition("?")[0].rpartition("/")[0] for location in locations])
    places = [Place(location, folder, cache=cache) for location, folder in zip(locations, folders, strict=True)]
    shards = count_shards(places)
    for shard in shards:
        shard.path = shard.path.removeprefix(f"{root}/") if root else shard.path
    return Split(shards)


def _told_apart(folders: list[str]) -> list[str]:
    """What is left of each folder when the part is cut off that all have in common; nothing where all are one."""
    if len(set(folders)) < 2:
        return [""] * len(folders)
    parts = [folder.split("/") for folder in folders]
    common = next(i for i, names in enumerate(itertools.zip_longest(*parts)) if len(set(names)) > 1)
    return ["/".join(part[common:]) or "." for part in parts]


def _expanded(pattern: str, root: str) -> list[str]:
    """The tars of one pattern, in order.

    Raises:
        UserError: none or not all of them are there.
    """
    check_kind(pattern)
    if re.search(r"\{[^}]*\{", pattern):
        raise UserError(f"{shown(pattern)} has braces within braces; write a list with commas instead")
    names = list(itertools.islice(expand_braces(pattern), MOST + 1))
    if len(names) > MOST:
        raise UserError(f"{shown(pattern)} stands for more than {MOST:,} tars; write fewer")
    found = [_matching(name) for name in names]
    missing = [name for name, tars in zip(names, found, strict=True) if not tars]
    if len(missing) == len(names):
        _refuse(pattern, root)
    if missing:
        counted = f"{len(missing)} of the {len(names)} tars of {shown(pattern)} are missing"
        raise UserError(f"{counted}, the first is {shown(missing[0])}{_near(pattern)}; fetch them or mend the list")
    return list(itertools.chain.from_iterable(found))


def _matching(name: str) -> list[str]:
    """The tars of a location in which only `*` has a meaning."""
    if is_url(name):
        return find(name) if "*" in name else [name]  # whether it is there shows when it is looked up
    if "*" not in name:
        return [name] if os.path.isfile(name) else []  # which knows no name that is too long to be looked for
    plain = name.partition("*")[0].rpartition("/")
    rest = name[len(plain[0] + plain[1]) :]
    try:
        return sorted(str(found) for found in Path(plain[0] + plain[1]).glob(re.sub(r"([\[?])", r"[\1]", rest)))
    except (ValueError, NotImplementedError, OSError) as error:
        raise UserError(f"{name} is no pattern of tars: {error}; in a name, * stands for what is there") from None


def _refuse(pattern: str, root: str) -> NoReturn:
    near = _near(pattern)
    hint = "`itr prepare --help` tells how to make them"
    if is_url(pattern):
        hint = "mend the list" if near else "a server that doesn't list its files needs their names: {00000..00041}.tar"
    elif root:
        hint = f"lists of tars are relative to {root}, and {hint}"
    raise UserError(f"no shards match {shown(pattern)}{near}; {hint}")


def _near(pattern: str) -> str:
    """What lies where a pattern matches nothing."""
    plain = pattern.partition("*")[0].partition("{")[0].rpartition("/")[0]
    try:
        if is_url(pattern):
            listed = find(f"{plain}/*")
            return _sample(shown(plain), [name.rpartition("/")[2] for name in listed]) if listed else ""
        folder = Path(plain or ("/" if pattern.startswith("/") else "."))
        while not folder.is_dir():
            pattern, folder = str(folder), folder.parent
        names = sorted(entry.name for entry in folder.iterdir())
        return _sample(str(folder), difflib.get_close_matches(Path(pattern).name, names, 3, 0.5) or names)
    except (UserError, OSError):
        return ""


def _sample(folder: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f" ({folder} holds {', '.join(names[:3])}{more})" if names else f" ({folder} is empty)"


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
        raise UserError(f"{path!r} is no folder: {error} Write it out") from None


def _pieces(text: str) -> list[str]:
    """A list at its commas, but for those between braces."""
    return [piece.strip() for piece in re.split(r",(?![^{]*\})", text) if piece.strip()]


def expand_braces(text: str) -> Iterator[str]:
    """`{00..11}` and `{a,b}` written out, the last one running fastest."""
    found = re.search(r"\{([^{}]*)\}", text)
    if found is None:
        yield text
        return
    for value in _values(found[1]):
        for rest in expand_braces(text[found.end() :]):
            yield text[: found.start()] + value + rest


def _values(inner: str) -> Iterator[str]:
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inner)
    if span is None:
        yield from inner.split(",")
        return
    first, last = int(span[1]), int(span[2])
    width = max(len(span[1]), len(span[2])) if any(n.startswith("0") and n != "0" for n in span.groups()) else 0
    for number in range(first, last + 1) if first <= last else range(first, last - 1, -1):
        yield f"{number:0{width}d}"
