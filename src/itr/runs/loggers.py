"""Lightning's loggers and printed output: a full disk is reported, and the run continues."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from itr.files.writing import whole_file
from itr.private_api.lightning import set_csv_writer

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the quota, or the size of a file
log = logging.getLogger(__name__)


class _Tolerant:
    """Reports once that logs could not be written, and continues."""

    reported = False

    def try_to(self, write: Callable[[], Any]) -> None:
        """Write, or report why not."""
        try:
            write()
        except (OSError, ValueError) as error:
            cause = error.__cause__ if isinstance(error, ValueError) else error  # TensorBoard's logger wraps it
            if not isinstance(cause, OSError):
                raise
            if not self.reported:
                log.error("could NOT write logs (%s). Training continues without them", cause.strerror or cause)
            self.reported = True


class _Rows(ExperimentWriter):
    """Rows of `metrics.csv`. Rows that are written survive a kill or a full disk at any moment.

    Lightning's own writer empties the file to write a new header, and leaves partial rows if the disk is full.
    """

    def save(self) -> None:
        """Add the new rows. A new metric changes the header, so that the file is rewritten."""
        if not self.metrics:
            return
        path, known = Path(self.metrics_file_path), set(self.metrics_keys).union(*self.metrics)
        if path.is_file() and known == set(self.metrics_keys):
            self._append(path, self._text(self.metrics_keys, self.metrics))
        else:
            earlier: list[Mapping[str, Any]] = []
            if path.is_file():
                with path.open(encoding="utf-8", newline="") as file:
                    earlier = list(csv.DictReader(file))
            keys = sorted(known)
            with whole_file(path) as file:
                header = dict(zip(keys, keys, strict=True))
                file.write(self._text(keys, [header, *earlier, *self.metrics]))
            self.metrics_keys = keys
        self.metrics = []

    @staticmethod
    def _text(keys: list[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
        text = io.StringIO(newline="")
        csv.DictWriter(text, keys).writerows(rows)
        return text.getvalue().encode()

    @staticmethod
    def _append(path: Path, data: bytes) -> None:
        with path.open("r+b", buffering=0) as file:
            size = file.seek(0, io.SEEK_END)
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:
                file.truncate(size)
                raise


class Csv(_Tolerant, CSVLogger):
    """`metrics.csv`; rows that could not be written are written later."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of the rows."""
        return set_csv_writer(self, self._make_writer)

    def _make_writer(self) -> _Rows:
        Path(self.root_dir).mkdir(parents=True, exist_ok=True)
        return _Rows(log_dir=self.log_dir)

    def save(self) -> None:
        """Write what has been logged."""
        self.try_to(super().save)

    def finalize(self, status: str) -> None:
        """Write the rest."""
        self.try_to(lambda: super(Csv, self).finalize(status))


class TensorBoard(_Tolerant, TensorBoardLogger):
    """Event files; their writer does not recover from a full disk."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Pass metrics to the writer."""
        self.try_to(lambda: super(TensorBoard, self).log_metrics(metrics, step))

    def save(self) -> None:
        """Write what has been logged."""
        self.try_to(super().save)

    def finalize(self, status: str) -> None:
        """Write the rest."""
        self.try_to(lambda: super(TensorBoard, self).finalize(status))


class Output:
    """A stream to a file; while the disk is full, its text is dropped or written later.

    Args:
        stream: where to write.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write as much as fits, and return the length of the text."""
        with _ignore_full_disk():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write buffered text, if it fits."""
        with _ignore_full_disk():
            self._stream.flush()


@contextlib.contextmanager
def _ignore_full_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise


def survive_full_disk() -> None:
    """Let no print stop this process because the disk is full, not even Python's last flush at exit."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, Output(stream))
