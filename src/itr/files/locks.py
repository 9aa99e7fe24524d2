"""Locks between processes; the system releases the lock of a process that ends, even one that is killed."""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
LONGEST_NOTE = 200  # characters
log = logging.getLogger(__name__)


class BusyError(Exception):
    """Another process holds the lock.

    Attributes:
        holder: that process in words, with its number, its host and since when it has held the lock.
    """

    def __init__(self, path: Path) -> None:
        self.holder = _holder(path)
        super().__init__(f"{self.holder} holds {path}")


@contextmanager
def locked(path: Path, wait: bool = True, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock that only one process can hold at a time.

    A lock file that a killed process leaves does not block: the lock belongs to the open file, not to its name, and
    processes forked meanwhile, such as data workers, do not share it. On a file system without locks, such as some
    network file systems, the block runs without one, after a warning.

    Args:
        path: the lock file, in an existing folder. With `wait` false it names the process that holds the lock.
        wait: whether to wait for the process that holds it.
        patience: seconds to wait for it if `wait` is false.

    Raises:
        BusyError: another process holds it, and `wait` is false.
        OSError: the file cannot be opened.
    """
    # Where files cannot be locked, filelock would create a marker file, and one left by a killed process would block.
    lock = FileLock(path, fallback_to_soft=False)
    held = True
    try:
        lock.acquire(timeout=-1 if wait else patience)
    except Timeout:
        raise BusyError(path) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        held = False
        log.warning("the file system of %s has no locks: let only one process at a time start or finish there", path)
    try:
        if held and not wait:
            _sign(path)
        yield
    finally:
        if held:
            lock.release()


def _sign(path: Path) -> None:
    """Write into the lock file which process holds the lock."""
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    with suppress(OSError):  # the disk is full: the lock is held all the same
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {since}\n", encoding="utf-8")


def _holder(path: Path) -> str:
    with suppress(OSError, ValueError):
        note = path.read_text(encoding="utf-8")[:LONGEST_NOTE].strip()
        if note.startswith("process ") and note.isprintable():
            return note
    return "another process"
