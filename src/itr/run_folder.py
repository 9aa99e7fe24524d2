"""Whether a run can write where it is to write, asked before the work begins rather than after it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from itr.errors import UserError


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
