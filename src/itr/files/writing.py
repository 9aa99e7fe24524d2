"""Files that commands write: checked for being writable before any work, and written completely or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from itr.errors import UserError

TEMPORARY = ".tmp"


def file_to_write(out: str | Path, *suffixes: str) -> Path:
    """The file that `--out` names, checked before anything is computed for it.

    Args:
        out: its name.
        suffixes: allowed suffixes, the usual one first; without any, all are allowed.

    Raises:
        UserError: it has another suffix, is a folder, or cannot be written.
    """
    target = Path(out).expanduser()
    if suffixes and target.suffix.lower() not in suffixes:
        raise UserError(f"--out is {out}; give a name that ends in {suffixes[0]}")
    if target.is_dir():
        raise UserError(f"--out is {out}, which is a folder; give the name of a file")
    check_writable(target.parent, "--out")
    return target


@contextmanager
def whole_file(
    target: Path, ending: str = TEMPORARY, sync: bool = False, keep_as: Path | None = None
) -> Iterator[IO[bytes]]:
    """A file that gets the name `target` only once it is complete; see `whole_path`.

    Raises:
        OSError: it could not be written; an earlier file is unchanged.
    """
    with whole_path(target, ending, sync, keep_as) as part, part.open("wb") as file:
        yield file


@contextmanager
def whole_path(
    target: Path, ending: str = TEMPORARY, sync: bool = False, keep_as: Path | None = None
) -> Iterator[Path]:
    """The name of a temporary file beside `target`, which replaces `target` when the block ends without an error.

    A process that is killed in the block leaves the temporary file, and the next one with the same name overwrites it.

    Args:
        target: the file to write.
        ending: appended to the name of `target` for the temporary file; `own_ending()` if several processes may write
            the same file without a lock.
        sync: sync the file to disk before it is renamed, and its folder before returning, so that a power failure
            leaves either the earlier file or this one.
        keep_as: name for the earlier file; None to remove it.

    Raises:
        OSError: it could not be written; the earlier file is unchanged.
    """
    part = target.with_name(target.name + ending)
    try:
        yield part
        if sync:
            sync_to_disk(part)
        if keep_as is not None and target.exists():
            _link(target, keep_as, ending)
        os.replace(part, target)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    if sync:
        with suppress(OSError):  # some file systems cannot sync a folder
            sync_to_disk(target.parent)


def own_ending() -> str:
    """An ending that no other process on this machine uses."""
    return f".{os.getpid()}{TEMPORARY}"


def sync_to_disk(path: Path) -> None:
    """Wait until the contents of a file, or the entries of a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(path: Path, target: Path, ending: str) -> None:
    """Give a file a second name; on a file system without hard links, copy it."""
    part = target.with_name(target.name + ending)
    part.unlink(missing_ok=True)
    try:
        os.link(path, part)
    except OSError:
        shutil.copyfile(path, part)
    os.replace(part, target)
    part.unlink(missing_ok=True)  # if both names belonged to one file, renaming did nothing


def check_writable(folder: Path, option: str) -> None:
    """Refuse a folder in which no file can be created, such as one on a read-only file system or below a file.

    Nothing is left behind: if the folder does not exist yet, the nearest existing one above it is tried.

    Args:
        folder: the folder to write to.
        option: the option that sets it, for messages.

    Raises:
        UserError: no file can be created in it.
    """
    near = folder.absolute()
    while not os.path.lexists(near) and near != near.parent:
        near = near.parent
    try:
        with tempfile.TemporaryFile(dir=near) as file:
            file.write(b"itr")
    except OSError as error:
        raise UserError(f"{folder} can't be written: {error.strerror}; choose another folder by {option}") from None
