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
    """Hold a lock that only one process can hold at a time.

    A lock file that a killed process leaves does not block: the lock belongs to the open file, not to its name. On a
    file system without locks, such as some network file systems, the block runs without one, after a warning.

    Args:
        path: the lock file, in an existing folder.
        wait: whether to wait for the process that holds it.

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
