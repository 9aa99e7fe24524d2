"""Files that hold the chunks of an unfinished pass."""

from __future__ import annotations

import os
import weakref
from pathlib import Path


class PartFile:
    """A file that several processes write in place.

    It stays open: when another command removes it and begins a new one under its name, nothing of this process gets
    into that one. Only the bytes that are written go to disk, never the memory page around them, so processes of
    several machines may write side by side in one file.

    Args:
        path: the file; it is created where it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        weakref.finalize(self, os.close, self._descriptor)

    def write(self, data: bytes | memoryview, at: int) -> None:
        """Write bytes at a place in the file."""
        left = memoryview(data).cast("B")
        while left:
            count = os.pwrite(self._descriptor, left, at)
            left, at = left[count:], at + count

    def append_line(self, line: bytes) -> None:
        """Write a line at the end and bring it to disk; only one process may do so."""
        end = os.fstat(self._descriptor).st_size
        # A killed process may have left half a line, which this one must not continue.
        self.write((b"\n" if end else b"") + line + b"\n", end)
        self.sync()

    def sync(self) -> None:
        """Wait until what was written is on the disk."""
        os.fsync(self._descriptor)


def reserve(path: Path) -> None:
    """Take the space on disk for a file of holes.

    Raises:
        OSError: there is no room for it.
    """
    with path.open("r+b") as stream:
        os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
