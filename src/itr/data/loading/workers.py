"""Signal handling of the loader's worker processes."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import signal
from collections.abc import Iterator

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


@contextlib.contextmanager
def hold_signals() -> Iterator[None]:
    """Block signals in this process, and in processes started inside the block until they call `ignore_signals`.

    NOTE: without this, a SIGTERM that reaches a worker before it ignores signals ends the worker, and torch then ends
    the run with an error.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def ignore_signals(worker: int) -> None:
    """Keep a loader's worker running when a signal reaches the whole process group; it ends with its main process.

    A second SIGTERM still ends it, because that is how a loader stops a worker that hangs.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@atexit.register
def end_workers() -> None:
    """Kill the data workers of this process when it ends: Python would send each a single SIGTERM, and wait."""
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    if workers and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would report their end as a crash
    for worker in workers:
        worker.kill()
