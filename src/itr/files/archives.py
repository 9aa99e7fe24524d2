"""Zip archives, the form in which torch writes checkpoints."""

from __future__ import annotations

import zipfile
from pathlib import Path

from itr.errors import UserError


def fault(path: Path) -> str:
    """What is wrong with the bytes of a checkpoint, by the checksums in it; empty if it is intact."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, RuntimeError, ValueError, EOFError, NotImplementedError) as error:
        return str(error) or type(error).__name__
    return "" if damaged is None else f"{damaged} in it is damaged"


def check_intact(path: Path) -> None:
    """Verify the checksums in a zip archive, which torch does not do when it loads one; other files have none.

    Raises:
        UserError: it is damaged.
    """
    if zipfile.is_zipfile(path) and (why := fault(path)):
        raise UserError(f"could not read {path}: it is damaged ({why})")
