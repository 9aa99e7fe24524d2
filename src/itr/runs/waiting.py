"""How long training waits for its data, with advice if that takes most of the time; and where it waits forever."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import time
from contextlib import suppress
from typing import Any

import lightning.pytorch as pl
import torch

from itr.distributed import stack
from itr.training.logging_steps import logs_now

TOO_MUCH = 0.5
log = logging.getLogger(__name__)


class DataWait(pl.Callback):
    """Logs `train/data_wait`, and gives advice after an epoch that was mostly spent waiting for data.

    It is the time in seconds that a step waited for its batch, averaged over the steps since the last log; with
    several processes, that of the one which waited longest.
    """

    def __init__(self) -> None:
        self._advised = False
        self._steps = 0
        self._logged = 0.0  # seconds that the loader had waited at the last log
        self._since: float | None = None  # when the clock of the epoch was started; None while it is stopped
        self._spent = 0.0
        self._waited = -1.0  # seconds waited when the clock was first started; below 0 before that

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the clock, which starts after the first batch: for that the workers have to start."""
        self._since, self._spent, self._waited = None, 0.0, -1.0
        self._logged = min(self._logged, _waited(trainer))  # the loader may be a new one

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Log at the logging steps."""
        waited = _waited(trainer)
        if self._since is None:
            self._since = time.perf_counter()
            self._waited = waited if self._waited < 0 else self._waited
        self._steps += 1
        if logs_now(trainer):
            mean = (waited - self._logged) / self._steps
            pl_module.log("train/data_wait", mean, reduce_fx="max", sync_dist=True)
            self._logged, self._steps = waited, 0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock, which the next training step starts again."""
        if self._since is not None:
            self._spent += time.perf_counter() - self._since
            self._since = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give advice once, if any process waited for more than half of the epoch."""
        self.on_validation_start(trainer, pl_module)
        share = (_waited(trainer) - self._waited) / self._spent if self._spent else 0.0
        share = float(stack(torch.tensor(share), trainer.strategy.root_device).max())
        if share <= TOO_MUCH or self._advised or not trainer.is_global_zero:
            return
        self._advised = True
        workers = trainer.datamodule.num_workers  # type: ignore[attr-defined]
        log.info(
            "%.0f%% of the epoch was spent waiting for data: use more --data.num_workers (now %d; there are %d cores) "
            "or make the images small once, by `itr prepare ... --resize 256`",
            100 * share,
            workers,
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        )


class Stalls(pl.Callback):
    """Prints the stack of every thread if no batch has ended for a long time, and goes on waiting.

    A process that waits for another one, or for a data worker, does nothing and reports nothing; the stacks show
    where. The system's clock of `faulthandler` needs neither the main thread nor Python's lock.

    Args:
        seconds: after which the stacks are printed, again and again.
        file: an open file to print to; by default stderr.
    """

    def __init__(self, seconds: float = 600.0, file: Any = None) -> None:
        self.seconds, self.file = seconds, file
        self._since = 0.0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._restart()

    def on_train_batch_end(self, *_: Any) -> None:
        """Start the clock again, but not so often that it takes time."""
        if time.monotonic() - self._since > self.seconds / 60:
            self._restart()

    def on_validation_batch_end(self, *_: Any) -> None:
        """As after a training batch."""
        self.on_train_batch_end()

    def teardown(self, *_: Any, **__: Any) -> None:
        """Stop the clock."""
        faulthandler.cancel_dump_traceback_later()

    def on_exception(self, *_: Any) -> None:
        """Stop the clock."""
        faulthandler.cancel_dump_traceback_later()

    def _restart(self) -> None:
        self._since = time.monotonic()
        with suppress(OSError, ValueError, AttributeError, RuntimeError):  # stderr may not be a file
            faulthandler.dump_traceback_later(self.seconds, repeat=True, file=self.file or sys.stderr)


def _waited(trainer: pl.Trainer) -> float:
    loader: Any = trainer.train_dataloader
    return float(loader.waited)
