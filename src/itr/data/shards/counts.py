"""Numbers of images and captions in tars without a manifest: counted once, then cached.

They come from the `00000_stats.json` that img2dataset writes beside a tar; without one, the whole tar is read. The
counts are cached in the user's cache folder by address, size and version, so that the next run starts at once.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from itr.data.shards.remote import describe_url, is_url, read_bytes, redacted, version_of, with_retries
from itr.data.shards.schema import Place, Shard, is_whole, stable_id
from itr.data.shards.seen import Seen, headers_of
from itr.data.shards.tars import count_tar
from itr.errors import UnreadableError
from itr.files.locks import locked
from itr.files.states import FileState
from itr.files.writing import own_ending, whole_file

THREADS = 8
log = logging.getLogger(__name__)
S = TypeVar("S")
T = TypeVar("T")


def cache_folder() -> Path:
    """The folder of cached counts: below XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "itr" / "counts"


@dataclass
class Tar:
    """A tar whose images and captions are to be counted.

    Attributes:
        place: where it is, with its version.
        size: in bytes; 0 if unknown.
        counts: images and captions, once known.
    """

    place: Place
    size: int
    counts: tuple[int, int] | None = None

    @property
    def record(self) -> Path:
        """The file that caches the counts."""
        return cache_folder() / f"{stable_id('1', self.place.location, self.size, self.place.version):016x}.json"


def count_shards(places: Sequence[Place]) -> list[Shard]:
    """The shards at these places with their counts.

    Raises:
        UserError: a tar could not be read.
    """
    tars = _in_threads(_look_up, places, "looking up tars")
    unknown = [tar for tar in tars if tar.counts is None]
    far = [tar for tar in unknown if is_url(tar.place.location)]
    if far:
        size = sum(tar.size for tar in far) / 1e9
        log.warning("%d tars (%.2f GB) have no counts: they are read once now to count", len(far), size)
    _in_threads(_count, unknown, "counting what tars hold")
    return [_shard(tar) for tar in tars]


def _in_threads(action: Callable[[S], T], things: Sequence[S], what: str) -> list[T]:
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(action, thing) for thing in things]
        try:
            return [future.result() for future in tqdm(futures, what, unit=" tars", disable=None, delay=2)]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _shard(tar: Tar) -> Shard:
    assert tar.counts is not None
    shard = Shard(tar.place.location, *tar.counts, tar.size)
    shard.place = tar.place
    return shard


def _look_up(place: Place) -> Tar:
    """What is known of a tar without reading it."""
    size, version, seen = (_at_url if is_url(place.location) else _on_disk)(place.location)
    tar = Tar(replace(place, version=version, seen=seen), size)
    tar.counts = _remembered(tar.record)
    if tar.counts is None and (stated := _stated_counts(place.location)):
        _remember(tar, stated)
    return tar


def _at_url(url: str) -> tuple[int, str, Seen]:
    found = describe_url(url)
    size = int(found.get("size") or 0)
    return size, version_of(found), Seen(headers=headers_of(found) | ({"size": str(size)} if size else {}))


def _on_disk(path: str) -> tuple[int, str, Seen]:
    found = with_retries(path, partial(os.stat, path))
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise UnreadableError(f"{path} is not a file, but a pipe or a device; correct the list of tars")
    return found.st_size, str(found.st_mtime_ns), Seen(state=FileState.from_stat(found))


def _remembered(record: Path) -> tuple[int, int] | None:
    try:
        kept = json.loads(record.read_bytes())
        return int(kept["images"]), int(kept["captions"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _stated_counts(location: str) -> tuple[int, int] | None:
    """The counts that img2dataset states for a tar: it writes one caption per image."""
    base, dot, query = location.partition(".tar?") if is_url(location) else (location, "", "")
    beside = base.removesuffix(".tar") + "_stats.json" + (f"?{query}" if dot else "")
    try:
        text = read_bytes(beside) if is_url(beside) else Path(beside).read_bytes()
        successes = json.loads(text)["successes"]
        return (successes, successes) if is_whole(successes) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # a UserError is a ValueError: no such file
        return None


def _count(tar: Tar) -> None:
    """Read the tar, while other processes on this machine that need its counts wait."""
    record = tar.record
    with ExitStack() as stack:
        try:
            record.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(record.with_suffix(".lock")))
        except OSError:
            log.warning("%s is not writable, so tars are counted in every run", record.parent)
        else:
            # Before the release: a process that waits for the lock sees that its file is gone, and creates a new one.
            stack.callback(record.with_suffix(".lock").unlink, missing_ok=True)
            tar.counts = _remembered(record)
        if tar.counts is None:
            _remember(tar, count_tar(tar.place))


def _remember(tar: Tar, counts: tuple[int, int]) -> None:
    tar.counts = counts
    text = {"tar": redacted(tar.place.location), "images": counts[0], "captions": counts[1]}
    with suppress(OSError):
        tar.record.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(tar.record, own_ending()) as file:
            file.write((json.dumps(text) + "\n").encode())
