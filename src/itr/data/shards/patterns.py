"""Lists of tars as text: `tars/{00000..00041}.tar`, `tars/*.tar`, `https://host/a.tar`, or several, with commas.

Braces expand as in bash, with the package that webdataset uses: `{00000..00041}` counts, `{0..9..3}` counts by threes,
`{a..c}` and `{a,b}` list. `*` matches existing names. A backslash has no special meaning.

NOTE: webdataset's `expand_urls` also splits at `::`, replaces `{NAME}` by an environment variable, and expands any
number of names in memory before it returns; importing it imports torch.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from braceexpand import braceexpand

from itr.data.shards.remote import find_urls, is_url, redacted
from itr.errors import UserError

MOST = 10**6  # tars of one pattern
FILE_URL = "file://"
LONGEST_PATH = 4096  # characters


def split_list(text: str, base: str = "") -> list[str]:
    """The patterns of a list, which is split at commas outside braces.

    The path of an existing file or folder is one pattern, and the folders at the beginning of a pattern are its own if
    they exist, whatever characters they contain. Paths are relative to `base`.
    """
    pieces = []
    while text:
        start = len(existing_folder(text, base))
        stop = _end_of_path(text, start, base) or _end_of_pattern(text, start)
        pieces.append(text[:stop])
        text = text[stop + 1 :].lstrip()
    return [piece.strip() for piece in pieces if piece.strip()]


def _end_of_path(text: str, start: int, base: str) -> int:
    """The length of the longest existing path that a list begins with, up to a comma or its end; 0 if there is none."""
    ends = [match.start() for match in re.finditer(r",|\Z", text) if start <= match.start() <= LONGEST_PATH]
    return next((end for end in reversed(ends) if end and os.path.exists(os.path.join(base, text[:end]))), 0)


def _end_of_pattern(text: str, start: int) -> int:
    found = re.search(r",(?![^{]*\})", text[start:])
    return start + found.start() if found else len(text)


def existing_folder(pattern: str, base: str = "") -> str:
    """The longest beginning of a pattern that is an existing folder, with its slash; nothing in it is special."""
    if pattern.startswith(FILE_URL):
        return FILE_URL + existing_folder(pattern.removeprefix(FILE_URL))
    if is_url(pattern) or is_url(base):
        return ""
    ends = [match.end() for match in re.finditer("/", pattern)]
    return next((pattern[:end] for end in reversed(ends) if _is_folder(base, pattern[:end])), "")


def _is_folder(base: str, path: str) -> bool:
    return os.path.isdir(os.path.join(base, os.path.expanduser(path)))


def names_tars(text: str, base: str = "") -> bool:
    """Whether the text lists tars, rather than naming a folder or a split; paths are relative to `base`."""
    if os.path.isdir(os.path.join(base, text)):
        return False
    rests = [piece.removeprefix(existing_folder(piece, base)) for piece in split_list(text, base)]
    return any("*" in rest or "{" in rest or rest.partition("?")[0].endswith(".tar") for rest in rests)


def expand_braces(pattern: str) -> Iterator[str]:
    """The names that a pattern expands to; the last braces vary fastest, and those of existing folders are kept.

    Raises:
        UserError: its braces are nested or unbalanced, or expand to more than a million names.
    """
    folder, whole = existing_folder(pattern), pattern
    pattern = pattern.removeprefix(folder)
    if re.search(r"\{[^}]*\{", pattern):
        raise UserError(f"{redacted(whole)} has nested braces; write a list with commas instead")
    try:
        if math.prod(map(_count, re.findall(r"\{([^{}]*)\}", pattern))) > MOST:
            raise UserError(f"{redacted(whole)} expands to more than {MOST:,} tars; list fewer")
        names = (folder + name for name in braceexpand(pattern, escape=False))
    except ValueError as error:
        reason = str(error).partition(":")[0]
        raise UserError(f"could not expand {redacted(whole)[:200]}: {reason}; write {{00000..00041}}") from None
    return names


def _count(inner: str) -> int:
    """How many names a pair of braces around `inner` expands to, computed without expanding it."""
    span = re.fullmatch(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?", inner)
    if span is None:
        return inner.count(",") + 1
    return abs(int(span[2]) - int(span[1])) // (int(span[3] or 1) or 1) + 1


def find_tars(name: str) -> list[str]:
    """The existing tars that match a name in which only `*` is special; a URL without `*` is assumed to exist."""
    if is_url(name):
        return find_urls(name) if "*" in name else [name]
    if os.path.isfile(name):  # unlike Path.is_file, it accepts a name that is too long for the file system
        return [name]
    if "*" not in name:
        return []
    folder = existing_folder(name)
    rest = name.removeprefix(folder)
    try:
        return sorted(str(found) for found in Path(folder).glob(re.sub(r"([\[?])", r"[\1]", rest)))
    except (ValueError, NotImplementedError, OSError) as error:
        raise UserError(f"could not search for {name}: {error}; in a name, * matches existing names") from None


def near_matches(pattern: str) -> str:
    """What the folder of a pattern without matches contains, for messages."""
    plain = pattern.partition("*")[0].partition("{")[0].rpartition("/")[0]
    try:
        if is_url(pattern):
            listed = find_urls(f"{plain}/*")
            return _sample(redacted(plain), [name.rpartition("/")[2] for name in listed]) if listed else ""
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
