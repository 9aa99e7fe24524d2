"""When a run writes its checkpoints, and where it may stop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from itr.errors import UserError
from itr.runs import checkpoint_files
from itr.runs.checkpoint_files import BEST, LAST, PREVIOUS
from itr.runs.stopping import Agreement, Signals, Stopped

MONITOR = "val/rsum"
FORMAT = 1
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointSettings:
    """When a run writes `checkpoints/last.ckpt` besides the end of each validation and epoch.

    Args:
        every_minutes: time between two of them within an epoch; 0 for none.
        every_steps: optimizer steps between two of them; 0 for none.
        keep_previous: keep the one before as `previous.ckpt` until the run ends, in case the disk damages the last.
    """

    every_minutes: float = 30.0
    every_steps: int = 0
    keep_previous: bool = True

    def __post_init__(self) -> None:
        """Refuse what can't be."""
        for name in ("every_minutes", "every_steps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"checkpoint.{name} is {getattr(self, name)}; it must be 0 (off) or a positive number")


class Checkpoints(Checkpoint):
    """Writes `last.ckpt` and, by the sum of recalls on the validation split, `best.ckpt`; stops where a signal asks to.

    Every file is written whole or not at all; one that can't be written costs a message, not the run. All processes
    take part in each, since each has random numbers of its own. The last is only written where an optimizer step has
    been made, since gradients that wait for more are not in it; so is the best, but for a validation between two steps.

    Args:
        folder: where they lie.
        settings: when they are written.
        signals: what asks the run to stop.
        fresh: whether the run goes on with none, so that files of an earlier one there are removed.
    """

    def __init__(self, folder: Path, settings: CheckpointSettings, signals: Signals, fresh: bool) -> None:
        self.folder, self.settings, self.signals, self.fresh = folder, settings, signals, fresh
        self.agreement = Agreement()
        self.best_score: float | None = None
        self._saved_step = -1  # when it was last tried
        self._saved_time = 0.0
        self._kept_step: int | None = None  # what is on the disk
        self._stop = 0
        self._due = False
        self._ends = False

    # What a checkpoint says of this callback

    def state_dict(self) -> dict[str, Any]:
        """The best score so far."""
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best score so far."""
        self.best_score = state_dict["best_score"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say which form the checkpoint has."""
        checkpoint["itr_format"] = FORMAT

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the best score of a checkpoint from before this callback, of Lightning's.

        Raises:
            UserError: a newer version has written it.
        """
        found = checkpoint.get("itr_format", 0)
        if found > FORMAT:
            raise UserError(
                f"{trainer.ckpt_path} has format {found}, and this version reads up to {FORMAT}: update itr"
            )
        self._saved_step = self._kept_step = checkpoint["global_step"]
        for state in checkpoint["callbacks"].values():
            if isinstance(state, Mapping) and state.get("monitor") == MONITOR and "best_model_score" in state:
                score = state["best_model_score"]
                self.best_score = None if score is None else float(score)

    # Where they are written

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Know the processes that this one has started, which a second signal ends with it."""
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            self.signals.children = launcher.procs

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on a signal waits for the end of a step.

        Raises:
            UserError: no checkpoint can be written.
        """
        if trainer.is_global_zero:
            self._clear()
        self.agreement.begin()
        self._saved_time = time.monotonic()
        self.signals.patient = True

    def _clear(self) -> None:
        """Make the folder, and remove what an earlier run left there that this one does not go on with."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            stale = [LAST, BEST, PREVIOUS] if self.fresh else []
            for name in [*stale, *(path.name for path in self.folder.glob("*" + checkpoint_files.PART))]:
                (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            told = f"{self.folder} can't be written: {error.strerror}; choose another --trainer.default_root_dir"
            raise UserError(told) from None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Within an epoch: write where it is time, and stop where it was asked."""
        self._listen(trainer)
        if self._waits_for_step(trainer) or trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            return  # the end of an epoch is that of its validation
        ends = trainer.should_stop or 0 < trainer.max_steps <= trainer.global_step  # Lightning calls the epoch done
        if self._stop or self._due or ends:
            self._save(trainer, LAST)
        self._end_if_asked(trainer)

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Stop within a long validation; it begins anew when the run goes on."""
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        averaged = any(isinstance(callback, WeightAveraging) for callback in callbacks)
        if self._idle(trainer) or averaged:  # the averages stand in the model's place until validation ends
            return
        self._listen(trainer)
        if self._stop and not self._waits_for_step(trainer):
            self._save(trainer, LAST, before_validation=True)
            self._end_if_asked(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the last, and the best where it is that."""
        if self._idle(trainer):
            return
        score = float(trainer.callback_metrics.get(MONITOR, math.nan))
        better = score > (-math.inf if self.best_score is None else self.best_score)  # a NaN never is
        waits = self._waits_for_step(trainer)
        self._save(trainer, *([BEST] if better else []), *([] if waits else [LAST]), score=score if better else None)
        self._due = waits
        if not waits:
            self._end_if_asked(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the last where validation has not, or took place earlier in the epoch."""
        if self._saved_step != trainer.global_step:
            self._save(trainer, LAST)
        self._end_if_asked(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """There is nothing left to stop, nor to go back to."""
        self.agreement.finish()
        if trainer.is_global_zero and self._kept_step == trainer.global_step:
            (self.folder / PREVIOUS).unlink(missing_ok=True)

    def _waits_for_step(self, trainer: pl.Trainer) -> bool:
        """Whether gradients wait for those of more batches. If so, what ends the run early does so after their step."""
        waits = trainer.fit_loop.epoch_loop._should_accumulate()
        if waits and trainer.should_stop:
            self._ends, trainer.should_stop = True, False
        elif self._ends and not waits:
            self._ends, trainer.should_stop = False, True
        return waits

    @staticmethod
    def _idle(trainer: pl.Trainer) -> bool:
        return trainer.state.fn != "fit" or trainer.sanity_checking

    def _listen(self, trainer: pl.Trainer) -> None:
        """Hear what the processes wish."""
        stop, due = self.agreement.exchange([self.signals.received, self._is_due(trainer)])
        self._stop, self._due = max(self._stop, stop), self._due or bool(due)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        settings = self.settings
        steps = trainer.global_step - max(self._saved_step, 0)
        if settings.every_steps and steps >= settings.every_steps:
            return True
        waited = time.monotonic() - self._saved_time
        return trainer.is_global_zero and 0 < settings.every_minutes * 60 <= waited

    def _end_if_asked(self, trainer: pl.Trainer) -> None:
        if not self._stop:
            return
        self.agreement.finish()
        launcher = trainer.strategy.launcher
        ours = isinstance(launcher, _SubprocessScriptLauncher) and isinstance(
            launcher.cluster_environment, LightningEnvironment
        )
        raise Stopped(self._stop, self._told(trainer.global_step), helper=ours and trainer.local_rank > 0)

    def _told(self, step: int) -> str:
        if self._kept_step == step:
            return f"stopped after step {step}; --ckpt_path last goes on from there"
        return f"stopped after step {step}, which {self._lost()}"

    def _lost(self) -> str:
        kept = "nothing" if self._kept_step is None else f"the state after step {self._kept_step}"
        return f"could not be written: there is {kept} to go on from"

    def unwritten(self, step: int) -> str:
        """What is to be told of a run that has ended after a step whose state could not be written; else nothing."""
        if self._kept_step == step or self._saved_step != step:
            return ""
        return f"training is done, but its last state, after step {step}, {self._lost()}, with --ckpt_path last"

    def _save(
        self, trainer: pl.Trainer, *names: str, score: float | None = None, before_validation: bool = False
    ) -> None:
        """Write a checkpoint under some names. Every process must call this."""
        if not names:
            return
        earlier, self.best_score = self.best_score, self.best_score if score is None else score
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(False)
        checkpoint["between_steps"] = LAST not in names
        if before_validation:
            _begin_validation_anew(checkpoint)
        mine = self._write(checkpoint, names) if trainer.is_global_zero else []
        written = trainer.strategy.broadcast(mine)
        if BEST not in written:
            self.best_score = earlier
        if LAST in written:
            self._kept_step = trainer.global_step
        if LAST in names:
            self._saved_step, self._saved_time, self._due = trainer.global_step, time.monotonic(), False

    def _write(self, checkpoint: dict[str, Any], names: tuple[str, ...]) -> list[str]:
        """Those that could be written. Each is a file of its own, so that what damages one leaves the other."""
        written: list[str] = []
        path = self.folder
        try:
            for path in (self.folder / name for name in names):
                keep = self.settings.keep_previous and path.name == LAST
                checkpoint_files.write(checkpoint, path, PREVIOUS if keep else "")
                written.append(path.name)
        except OSError as error:
            log.error(
                "step %d: %s could NOT be written (%s). Training goes on, and the earlier file is as it was; make room",
                checkpoint["global_step"],
                path,
                error.strerror or error,
            )
        return written


def _begin_validation_anew(checkpoint: dict[str, Any]) -> None:
    """Make the state of a run that is within its validation that of one which is about to begin it."""
    begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    progress = {"total": begun, "current": begun, "is_last_batch": False}
    checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] = progress
