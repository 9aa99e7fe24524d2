"""Lightning's loggers, which cost a message and not the run when the disk is full."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

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
