"""A run whose loss or weights are no longer finite is stopped and reported, and writes no such checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from itr.distributed import largest, process_number, world_size
from itr.errors import UserError
from itr.runs.checkpoints.checkpoint_files import newest
from itr.training.logging_steps import logs_now
from itr.training.optim import gradient_scaler
from itr.types import Batch

NAMED = 3


@dataclass
class Moment:
    """A step of a run: steps done before it, epoch and batch from 0, and the keys of its samples."""

    step: int
    epoch: int
    batch: int
    keys: Sequence[str]

    def __str__(self) -> str:
        named = f"; its samples: {_some(self.keys)}" if self.keys else ""
        which = f" on process {process_number()} of {world_size()}" if world_size() > 1 else ""
        return f"step {self.step} (epoch {self.epoch + 1}, batch {self.batch + 1}{which}{named})"


class Reading:
    """The terms of one loss, copied from the device while it continues with the step.

    Args:
        moment: the step.
        terms: the terms [] by name.
        scale: factor [] by which fp16 training multiplies the loss; None in other precisions.
    """

    def __init__(self, moment: Moment, terms: dict[str, Tensor], scale: Tensor | None) -> None:
        self.moment, self.names, self.scaled = moment, list(terms), scale is not None
        values = torch.stack(
            [value.detach().float() for value in (*terms.values(), *([scale] if scale is not None else []))]
        )
        on_gpu = values.is_cuda
        self._values = torch.empty(values.shape, pin_memory=on_gpu).copy_(values, non_blocking=True)
        self._arrived = torch.cuda.Event() if on_gpu else None
        if self._arrived:
            self._arrived.record()

    @property
    def loss(self) -> float | None:
        """The sum of the terms; None until they have arrived."""
        if self._arrived and not self._arrived.query():
            return None
        return math.fsum(self._values[: len(self.names)].tolist())

    def arrive(self) -> None:
        """Wait until the values have arrived."""
        if self._arrived:
            self._arrived.synchronize()
        values: list[float] = self._values.tolist()
        self.scale = values.pop() if self.scaled else 1.0
        finite = torch.tensor(values).isfinite().tolist()
        self.bad = {name: value for name, value, good in zip(self.names, values, finite, strict=True) if not good}


class Watch(pl.Callback):
    """Stops a run whose loss or weights are not finite.

    The loss of a step is copied to the CPU without waiting for it, and checked when the next step begins, before
    validation, and before a checkpoint is written; the device is never idle for it. Under 16-mixed, a step with
    infinite gradients is skipped and the next one uses a smaller scale; too many skipped steps in a row stop the run.

    Args:
        max_bad_steps: steps in a row that 16-mixed may skip before the run stops; without a scaler the first stops it.
    """

    def __init__(self, max_bad_steps: int = 20) -> None:
        if max_bad_steps < 1:
            raise UserError(f"watch.max_bad_steps is {max_bad_steps}; it must be 1 or more")
        self.max_bad_steps = max_bad_steps
        self.skipped_steps = 0
        self._in_a_row = 0
        self._pending: list[Reading] = []
        self._before: Reading | None = None
        self._moment = Moment(0, 0, 0, ())
        self._trainer: pl.Trainer | None = None
        self._loss: float | None = None
        self._old: dict[Path, int] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note which checkpoints exist before this run."""
        self._trainer = trainer
        self._old = _checkpoints(trainer)
        self._moment = Moment(trainer.global_step, trainer.current_epoch, 0, ())

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Check the last step before the next one begins."""
        self._look()
        self._moment = Moment(trainer.global_step, trainer.current_epoch, batch_idx, batch.keys)
        if gradient_scaler(trainer) and logs_now(trainer):
            pl_module.log("train/skipped_steps", float(self.skipped_steps))

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Start to copy the terms of the loss to the CPU."""
        terms: dict[str, Tensor] = pl_module.last_terms  # type: ignore[assignment]
        scaler = gradient_scaler(trainer)
        scale = scaler.scale(torch.ones((), device=loss.device)) if scaler else None  # this way it stays on the device
        self._pending.append(Reading(self._moment, terms, scale))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check before validation."""
        if trainer.state.fn == "fit":
            self.check()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check at the end of the epoch."""
        self.check()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Check before any callback writes a checkpoint."""
        if self._trainer is not None:
            self.check()

    def check(self) -> None:
        """Check all losses so far and the weights. All processes must call this together.

        Raises:
            UserError: a loss or a weight is not finite.
        """
        self._look()
        assert self._trainer is not None
        weights = dict(self._trainer.lightning_module.named_parameters())
        finite = torch.stack([weight.detach().isfinite().all() for weight in weights.values()]).tolist()
        bad = [name for name, good in zip(weights, finite, strict=True) if not good]
        if largest(len(bad), self._trainer.strategy.root_device):
            raise self._error(f"{len(bad)} of {len(weights)} weights are not finite after", self._moment, bad)

    @property
    def loss(self) -> float | None:
        """The newest loss that has arrived, without waiting for one; None before the first."""
        arrived = [reading.loss for reading in self._pending]
        self._loss = next((loss for loss in reversed(arrived) if loss is not None), self._loss)
        return self._loss

    def _look(self) -> None:
        pending, self._pending = self._pending, []
        for reading in pending:
            reading.arrive()
            self._loss = reading.loss
            if reading.scaled:
                self._count(reading)
            elif reading.bad:
                raise self._error("the loss is not finite in", reading.moment, _values(reading.bad))

    def _count(self, reading: Reading) -> None:
        """Count the step before this reading if it was skipped, which lowers the scale."""
        before, self._before = self._before, reading
        if before is None:
            return
        if before.moment.step == reading.moment.step:  # a part of the same accumulated step
            reading.bad = before.bad | reading.bad
            return
        if not before.bad and reading.scale >= before.scale:
            self._in_a_row = 0
            return
        self.skipped_steps += 1
        self._in_a_row += 1
        if self._in_a_row >= self.max_bad_steps:
            what = (
                f"{self._in_a_row} steps in a row were skipped for gradients that are not finite in fp16, the last in"
            )
            raise self._error(what, before.moment, _values(before.bad))

    def _error(self, what: str, moment: Moment, bad: Sequence[str]) -> UserError:
        assert self._trainer is not None
        which = f"\nnot finite: {_some(bad)}" if bad else ""
        used = str(self._trainer.precision)
        wider = "" if "16" not in used else "32-true" if used.startswith("bf16") else "bf16-mixed or 32-true"
        precision = f", --trainer.precision {wider}" if wider else ""
        return UserError(
            f"{what} {moment}{which}\nlast good checkpoint: {self._last_good()}\n"
            "What helps: a lower --model.optimizer.lr, a longer --model.optimizer.warmup, "
            f"--trainer.gradient_clip_val 1{precision}, and a look at these samples and their features"
        )

    def _last_good(self) -> str:
        assert self._trainer is not None
        new = [path for path, time in _checkpoints(self._trainer).items() if self._old.get(path) != time]
        resumed = [Path(self._trainer.ckpt_path)] if self._trainer.ckpt_path else []
        found = newest(new) or newest(resumed)
        if found is None:
            return "none was written yet"
        return "{}, after {} steps; resume from it by --ckpt_path".format(*found)


def _checkpoints(trainer: pl.Trainer) -> dict[Path, int]:
    """Times at which the checkpoints of the run folder were written, in nanoseconds."""
    folder = Path(trainer.default_root_dir) / "checkpoints"
    return {path: path.stat().st_mtime_ns for path in folder.glob("*.ckpt")}


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _values(bad: dict[str, float]) -> list[str]:
    return [f"{name} = {value}" for name, value in bad.items()]
