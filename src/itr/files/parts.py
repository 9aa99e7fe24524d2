"""Files that hold the chunks of an unfinished pass."""

from __future__ import annotations

import os
import weakref
from pathlib import Path


class PartFile:
    """A file that several processes write in place.

    It stays open: if another command removes it and creates a new file with its name, this process does not write to
    the new one. Only the written bytes go to disk, never the memory page around them, so processes on several machines
    can write to different places of one file.

    Args:
        path: the file; it is created if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        weakref.finalize(self, os.close, self._descriptor)

    def write(self, data: bytes | memoryview, at: int) -> None:
        """Write bytes at offset `at` of the file."""
        left = memoryview(data).cast("B")
        while left:
            count = os.pwrite(self._descriptor, left, at)
            left, at = left[count:], at + count

    def append_line(self, line: bytes) -> None:
        """Append a line and sync it to disk; only one process may do so."""
        end = os.fstat(self._descriptor).st_size
        # A killed process may have left an incomplete line, which this one must not continue.
        self.write((b"\n" if end else b"") + line + b"\n", end)
        self.sync()

    def sync(self) -> None:
        """Wait until all written bytes are on disk."""
        os.fsync(self._descriptor)


def reserve(path: Path) -> None:
    """Allocate the disk space of a sparse file.

    Raises:
        OSError: the disk does not have enough space.
    """
    with path.open("r+b") as stream:
        os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
