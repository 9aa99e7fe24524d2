"""Files that commands write: whether they can, asked before the work rather than after it; and whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from itr.errors import UserError


def file_to_write(out: str | Path, *suffixes: str) -> Path:
    """The file that `--out` names, looked at before anything is computed for it.

    Args:
        out: its name.
        suffixes: what it may end in, the usual one first; none to let it end as it likes.

    Raises:
        UserError: it ends otherwise, is a folder, or can't be written.
    """
    target = Path(out).expanduser()
    if suffixes and target.suffix.lower() not in suffixes:
        raise UserError(f"--out is {out}; give a name that ends in {suffixes[0]}")
    if target.is_dir():
        raise UserError(f"--out is {out}, which is a folder; give the name of a file")
    check_writable(target.parent, "--out")
    return target


@contextmanager
def whole_file(target: Path) -> Iterator[IO[bytes]]:
    """A file that gets its name, and takes the place of the one before, only when all of it is written.

    Raises:
        OSError: it can't be written; what was there before is as it was.
    """
    part = target.with_name(f"{target.name}.tmp")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def check_writable(folder: Path, option: str) -> None:
    """Refuse a folder in which no file can be made, such as one of a read-only file system or below a file.

    Nothing is left behind: where the folder isn't there yet, the nearest one above it is tried.

    Args:
        folder: where to write.
        option: the one that chooses it.

    Raises:
        UserError: it can't be written.
    """
    near = folder.absolute()
    while not os.path.lexists(near) and near != near.parent:
        near = near.parent
    try:
        with tempfile.TemporaryFile(dir=near) as file:
            file.write(b"itr")
    except OSError as error:
        raise UserError(f"{folder} can't be written: {error.strerror}; choose another folder by {option}") from None
