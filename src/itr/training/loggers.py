"""Lightning's loggers and what is printed: a full disk costs a message and not the run."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room, none within the quota, none in one file
log = logging.getLogger(__name__)


class _Tolerant:
    """Says once that figures can't be written, and goes on."""

    told = False

    def try_to(self, write: Callable[[], Any]) -> None:
        """Write, or say why not."""
        try:
            write()
        except (OSError, ValueError) as error:
            cause = error.__cause__ if isinstance(error, ValueError) else error  # TensorBoard's logger takes it so
            if not isinstance(cause, OSError):
                raise
            if not self.told:
                log.error("logs can NOT be written (%s). Training goes on without", cause.strerror or cause)
            self.told = True


class Csv(_Tolerant, CSVLogger):
    """`metrics.csv`; what could not be written is written later."""

    def save(self) -> None:
        """Write what has been logged."""
        self.try_to(super().save)

    def finalize(self, status: str) -> None:
        """Write the rest."""
        self.try_to(lambda: super(Csv, self).finalize(status))


class TensorBoard(_Tolerant, TensorBoardLogger):
    """Event files; its writer does not come back after a full disk."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Hand figures to the writer."""
        self.try_to(lambda: super(TensorBoard, self).log_metrics(metrics, step))

    def save(self) -> None:
        """Write what has been logged."""
        self.try_to(super().save)

    def finalize(self, status: str) -> None:
        """Write the rest."""
        self.try_to(lambda: super(TensorBoard, self).finalize(status))


class Output:
    """A stream to a file, whose text is left out, or comes later, where the disk is full.

    Args:
        stream: where to write.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write what there is room for; the length of the text."""
        with _room_or_not():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what waits, if there is room."""
        with _room_or_not():
            self._stream.flush()


@contextlib.contextmanager
def _room_or_not() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise


def print_without_room() -> None:
    """Let no print stop this process for want of room, until it has ended: the last flush is Python's own."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, Output(stream))
