"""Samples of one tar, local or remote: only images, `.json` and `.txt` are read, nothing is unpickled or unpacked.

The name of a member is split at the first dot of its last part into a key and a kind: `000000000.jpg`, `000000000.txt`.
A key is only a name within its tar and never used as a path: `../../x` is a key like any other.

Shards are written with webdataset and open in it, but itr reads them itself. webdataset's reader
- returns a sample whose members are not adjacent as several incomplete ones, which a pipeline then drops silently;
- merges samples whose keys contain a dot: `v1.0.jpg` and `v1.1.jpg` become one sample `v1`;
- unpickles members by default when it decodes, and runs the commands in `pipe:` locations;
- cannot continue at a given sample, which exact resuming needs.
itr reports such a sample or tar in an error, or skips and counts it, and can continue at any sample.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from itr.data.shards.remote import is_url, redacted
from itr.data.shards.schema import Place, Sample, parse_sample, stable_id
from itr.data.shards.streams import download, open_stream
from itr.errors import UnreadableError, UserError
from itr.files.locks import locked
from itr.images.kinds import IMAGE_TYPES

KINDS = {*IMAGE_TYPES, "json", "txt"}
LARGEST = 2**30  # bytes of a member: a small compressed tar could otherwise fill the memory
PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml")


def read_tar(place: Place | Path, skip: int = 0, strict: bool = True, images: bool = True) -> Iterator[Sample]:
    """The samples of a tar in order, without the first `skip`, whose images are not read.

    Args:
        place: where it is.
        skip: number of samples to skip.
        images: whether to read the images; otherwise they are empty.
        strict: whether an incomplete sample is refused, or a tar that is not as its manifest says; otherwise the
            sample is returned with a `fault`, and the tar causes a warning.

    Raises:
        UnreadableError: it is not a tar, is truncated, could not be fetched, or changed since the run began.
        UserError: a sample is incomplete.
    """
    where = Place(str(place)) if isinstance(place, Path) else place
    for raw in read_groups(where, skip, images, strict):
        try:
            sample = parse_sample(raw)
        except UserError as error:
            if strict:
                raise
            sample = Sample.faulty(raw, str(error))
        yield sample


def count_tar(place: Place) -> tuple[int, int]:
    """Numbers of images and captions of a tar, from its headers and texts.

    Raises:
        UserError: as `read_tar`; also if a header is damaged, the end mark of the tar is missing, or anything but
            zeros follows it: samples would be lost without notice.
    """
    captions = [len(parse_sample(raw).captions) for raw in read_groups(place, images=False, counting=True)]
    return len(captions), sum(captions)


def read_groups(
    place: Place,
    skip: int = 0,
    images: bool = True,
    strict: bool = True,
    others: list[str] | None = None,
    counting: bool = False,
) -> Iterator[dict[str, Any]]:
    """The members of each sample by kind, with its key and place.

    Args:
        place: where the tar is.
        skip: number of samples to skip.
        images: whether to read them; otherwise they are empty bytes.
        strict: as in `read_tar`.
        others: gets the names of the files that belong to no sample.
        counting: whether the tar is read to count its samples, so that nothing in it may be damaged.

    Raises:
        UserError: as `read_tar`.
    """
    name = redacted(place.location)
    start = {"__url__": name, "__shard__": name.rpartition("/")[2] or name, "__folder__": place.folder}
    raw: dict[str, Any] = {}
    number = -1
    try:
        with open_shard(place, strict) as stream, _opened(stream, name, _StrictHeader if counting else _Header) as tar:
            for member, key, kind in _members(tar, others):
                if key != raw.get("__key__"):
                    if number >= skip:
                        yield raw
                    raw, number = {**start, "__key__": key}, number + 1
                if kind in raw:
                    raise ValueError(f"it holds {member.name} twice")
                if member.size > LARGEST:
                    raise ValueError(f"{member.name} has {member.size:,} bytes, more than any image")
                if number >= skip and kind in KINDS:
                    wanted = images or kind in ("json", "txt")
                    raw[kind] = _content(tar, member) if wanted else b""
                elif number >= skip:
                    raw.setdefault("__dotted__", member.name)
            if counting and tar.fileobj.tell() <= tar.offset:  # type: ignore[union-attr]
                raise EOFError("the mark at its end is missing, so it was truncated")
            if number >= skip:
                yield raw
            if _more_follows(tar) and counting:
                raise ValueError("data follows the mark at its end, where no reader would look")
    except UserError:
        raise
    except Exception as error:  # tarfile raises many kinds
        raise UnreadableError(f"could not read shard {name}: {_first(error)}; fetch or prepare it again") from None


class _Header(tarfile.TarInfo):
    """A header that reads only name, kind and size of a plain file, which takes a third of the time."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> _Header:
        """As `tarfile.TarInfo.frombuf`, which handles all headers that are not of a plain file, or are damaged."""
        if len(buf) != tarfile.BLOCKSIZE or buf[156:157] != tarfile.REGTYPE or buf[345]:
            return super().frombuf(buf, encoding, errors)
        total, size = _octal(buf[148:156]), _octal(buf[124:136])
        if size is None or total != sum(buf) - sum(buf[148:156]) + 8 * 32:  # the field itself counts as spaces
            return super().frombuf(buf, encoding, errors)
        header = cls(buf[:100].partition(b"\0")[0].decode(encoding, errors))
        header.size = size
        return header


class _StrictHeader(_Header):
    """Refuses a damaged header, which tarfile would mistake for the end."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> _StrictHeader:
        """As `_Header.frombuf`."""
        try:
            return super().frombuf(buf, encoding, errors)  # type: ignore[return-value]
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"a header in it is damaged ({error})") from None


def _octal(digits: bytes) -> int | None:
    """A number in a header; None if it is missing or in another notation."""
    digits = digits.strip(b" \0")
    return int(digits, 8) if digits and not digits.strip(b"01234567") else None


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of a plain file, without the overhead of `extractfile`."""
    stream: Any = tar.fileobj
    stream.seek(member.offset_data)
    data: bytes = stream.read(member.size)
    if len(data) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    return data


def key_and_type(name: str) -> tuple[str, str]:
    """Key and kind of a member: its name, split at the first dot of its last part, as webdataset does."""
    folder, slash, file = name.rpartition("/")
    key, _, kind = file.partition(".")
    return folder + slash + key, kind.lower()


def _more_follows(tar: tarfile.TarFile) -> bool:
    """Whether anything but zeros follows the end mark; reading to the end also makes gzip verify its checksum."""
    stream: Any = tar.fileobj
    return any(data.strip(b"\0") for data in iter(lambda: stream.read(2**20), b""))


def _members(tar: tarfile.TarFile, others: list[str] | None) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
    """The files that may belong to a sample, with key and kind. Links and sparse files are skipped."""
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them
        key, kind = key_and_type(member.name)
        known = key and key[-1] != "/" and kind.rpartition(".")[2] in KINDS
        if known and member.isreg() and not member.issparse() and not re.match(r"__[^/]*__($|/)", member.name):
            yield member, key, kind
        elif others is not None and member.isfile():
            others.append(member.name)


@contextmanager
def open_shard(place: Place, strict: bool = True) -> Iterator[io.BufferedReader]:
    """The bytes of a tar: from disk, from its copy in the cache folder, or streamed from its URL.

    Args:
        place: where it is.
        strict: whether a tar that is not as its manifest says is an error, or a warning.

    Raises:
        UnreadableError: it could not be read, or changed since the run began.
    """
    location, seen = place.location, place.seen
    if is_url(location) and not place.cache:
        with open_stream(location, seen, strict) as stream:
            yield stream
        return
    location = str(_copy(place)) if is_url(location) else location
    with open_stream(location) as stream:
        opened = seen.check_opened(location, stream, strict)
        yield stream
        seen.check_read(location, stream, opened, strict)


def _copy(place: Place) -> Path:
    """The local copy of a shard, fetched by the first process on this machine that needs it."""
    folder = Path(place.cache).expanduser()
    stem = redacted(place.location).rpartition("/")[2].removesuffix(".tar")
    copy = folder / f"{stem[:80]}-{stable_id(place.location, place.version):016x}.tar"
    if not copy.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / f"{copy.name}.lock"):
                if not copy.is_file():
                    download(place.location, copy, place.seen)
        except OSError as error:
            raise UserError(f"data.cache: could not write to {folder}: {error.strerror}; choose another") from None
    return copy


def _opened(stream: io.BufferedReader, name: str, header: type[tarfile.TarInfo]) -> tarfile.TarFile:
    start = stream.peek(512)[:512]
    if start.lstrip().lower().startswith(PAGES):
        raise UnreadableError(f"{name} is a web page ({start[:40]!r}), not a tar; check the address")
    if not start:
        raise EOFError("it is empty")
    try:
        if stream.seekable():
            return tarfile.open(fileobj=stream, mode="r:*", tarinfo=header)
        return tarfile.open(fileobj=stream, mode="r|*", bufsize=2**20, tarinfo=header)
    except tarfile.TarError:
        raise ValueError(f"it is not a tar (it begins with {start[:16]!r})") from None


def _first(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or (error.args[0] if error.args else None)
    return str(reason or type(error).__name__)
