"""Locks between processes; the system releases the lock of a process that ends, even one that is killed."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
log = logging.getLogger(__name__)


class BusyError(Exception):
    """Another process holds the lock."""


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lock that one process has at a time.

    A file that a killed process leaves is not a lock: the lock belongs to the open file, not to its name. Where the
    file system has no locks, as some network file systems, the block runs without one, after a warning.

    Args:
        path: the file of the lock, in a folder that exists.
        wait: wait for the process that holds it.

    Raises:
        BusyError: another process holds it, and `wait` is false.
        OSError: the file cannot be opened.
    """
    # Where files cannot be locked, filelock would create a marker file, and one left by a killed process would block.
    lock = FileLock(path, fallback_to_soft=False)
    held = True
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        raise BusyError(f"another process holds {path}") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        held = False
        log.warning("the file system of %s has no locks: let only one process at a time start or finish there", path)
    try:
        yield
    finally:
        if held:
            lock.release()
