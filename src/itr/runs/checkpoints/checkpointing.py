"""When a run writes its checkpoints, and where it may stop."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging

from itr.errors import UserError
from itr.private_api.lightning import dump_checkpoint, is_accumulating, is_epoch_over, script_launcher
from itr.runs.checkpoints import checkpoint_files
from itr.runs.checkpoints.contents import FORMAT, MONITOR, check_format, lightning_best_score, restart_validation
from itr.runs.checkpoints.messages import lost, stopped
from itr.runs.checkpoints.settings import BEST, LAST, PREVIOUS, CheckpointSettings
from itr.runs.stopping import Agreement, Signals, Stopped

log = logging.getLogger(__name__)


class Checkpoints(Checkpoint):
    """Writes `last.ckpt` and, by the sum of recalls on the validation split, `best.ckpt`; stops the run on a signal.

    Each file is written completely or not at all. If one cannot be written, an error is logged and the run continues.
    All processes take part in each checkpoint, since each has its own random state. `last.ckpt` is written only after
    an optimizer step, since a checkpoint does not contain accumulated gradients; so is `best.ckpt`, except for a
    validation between two steps.

    Args:
        folder: where checkpoints are written.
        settings: when they are written.
        signals: the signals that stop the run.
        fresh: whether the run starts from scratch, so that checkpoints of an earlier run in the folder are removed.
    """

    def __init__(self, folder: Path, settings: CheckpointSettings, signals: Signals, fresh: bool) -> None:
        self.folder, self.settings, self.signals, self.fresh = folder, settings, signals, fresh
        self.agreement = Agreement()
        self.best_score: float | None = None
        self._lost_score: float | None = None  # of a better checkpoint that could not be written
        self.resumed_step = -1  # step of the checkpoint from which the run resumed
        self._saved_step = -1  # step of the last attempt
        self._saved_time = 0.0
        self._kept_step: int | None = None  # step of the checkpoint on disk
        self._stop = 0
        self._due = False
        self._ends = False

    # The state of this callback in a checkpoint

    def state_dict(self) -> dict[str, Any]:
        """The best score so far."""
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score so far."""
        self.best_score = state_dict["best_score"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the version of the format."""
        checkpoint["itr_format"] = FORMAT

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take over the best score from a checkpoint of the first versions.

        Raises:
            UserError: a newer version wrote the checkpoint.
        """
        check_format(checkpoint, str(trainer.ckpt_path))
        self.resumed_step = self._saved_step = self._kept_step = checkpoint["global_step"]
        if (score := lightning_best_score(checkpoint)) is not None:
            self.best_score = score

    # When checkpoints are written

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Note which processes this one has started: a second signal ends them too."""
        if launcher := script_launcher(trainer):
            self.signals.children = launcher.procs

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From now on a signal stops the run at the end of a step.

        Raises:
            UserError: the folder is not writable.
        """
        if trainer.is_global_zero:
            self._clear()
        self.agreement.begin()
        self._saved_time = time.monotonic()
        self.signals.patient = True

    def _clear(self) -> None:
        """Make the folder, and remove partial files and, for a fresh run, checkpoints of an earlier run."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            stale = [LAST, BEST, PREVIOUS] if self.fresh else []
            for name in [*stale, *(path.name for path in self.folder.glob("*" + checkpoint_files.PART))]:
                (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"could not write to {self.folder}: {error.strerror}; choose another --trainer.default_root_dir"
            ) from None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Within an epoch, write a checkpoint if one is due, and stop if a signal asked for it."""
        self._listen(trainer)
        if self._waits_for_step(trainer) or is_epoch_over(trainer):
            return  # validation or the end of the epoch follows, and writes
        ends = trainer.should_stop or 0 < trainer.max_steps <= trainer.global_step  # Lightning ends the epoch here
        if self._stop or self._due or ends:
            self._save(trainer, LAST)
        self._end_if_asked(trainer)

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Stop within a long validation, which starts again from its first batch when the run resumes."""
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        averaged = any(isinstance(callback, WeightAveraging) for callback in callbacks)
        if self._idle(trainer) or averaged:  # averages replace the weights until validation ends
            return
        self._listen(trainer)
        if self._stop and not self._waits_for_step(trainer):
            self._save(trainer, LAST, before_validation=True)
            self._end_if_asked(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write `last.ckpt`, and `best.ckpt` if the score has improved."""
        if self._idle(trainer):
            return
        score = float(trainer.callback_metrics.get(MONITOR, math.nan))
        self._forget_missing_best(trainer)
        better = score > (-math.inf if self.best_score is None else self.best_score)  # false for NaN
        waits = self._waits_for_step(trainer)
        self._save(trainer, *([BEST] if better else []), *([] if waits else [LAST]), score=score if better else None)
        self._due = waits
        if not waits:
            self._end_if_asked(trainer)

    def _forget_missing_best(self, trainer: pl.Trainer) -> None:
        """Without its file, the best score says nothing about what can be opened: the next score is the best again."""
        if self.best_score is not None and trainer.strategy.broadcast(not (self.folder / BEST).exists()):
            log.warning("%s does not exist any more: it is written again by this validation", self.folder / BEST)
            self.best_score = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write `last.ckpt` unless validation has just written it."""
        if self._saved_step != trainer.global_step:
            self._save(trainer, LAST)
        self._end_if_asked(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing is left to stop, and `previous.ckpt` is no longer needed."""
        self.agreement.finish()
        if trainer.is_global_zero and self._kept_step == trainer.global_step:
            (self.folder / PREVIOUS).unlink(missing_ok=True)

    def _waits_for_step(self, trainer: pl.Trainer) -> bool:
        """Whether gradients are still being accumulated. If so, an early end of the run is put off until their step."""
        waits = is_accumulating(trainer)
        if waits and trainer.should_stop:
            self._ends, trainer.should_stop = True, False
        elif self._ends and not waits:
            self._ends, trainer.should_stop = False, True
        return waits

    @staticmethod
    def _idle(trainer: pl.Trainer) -> bool:
        return trainer.state.fn != "fit" or trainer.sanity_checking

    def _listen(self, trainer: pl.Trainer) -> None:
        """Exchange with the other processes whether to stop and whether a checkpoint is due."""
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
        launcher = script_launcher(trainer)
        ours = launcher is not None and isinstance(launcher.cluster_environment, LightningEnvironment)
        raise Stopped(self._stop, stopped(trainer.global_step, self._kept_step), helper=ours and trainer.local_rank > 0)

    def unwritten(self, step: int) -> str:
        """The message for a run that has ended after `step` and could not write what it should leave; else empty."""
        if self._saved_step == step and self._kept_step != step:
            return f"training has ended after step {step}, {lost(self._kept_step)} by --ckpt_path last"
        if self._lost_score is None:
            return ""
        return f"the best validation ({MONITOR} {self._lost_score:.2f}) could not be written to {self.folder / BEST}"

    def _save(
        self, trainer: pl.Trainer, *names: str, score: float | None = None, before_validation: bool = False
    ) -> None:
        """Write a checkpoint under each of these names. Every process must call this."""
        if not names:
            return
        earlier, self.best_score = self.best_score, self.best_score if score is None else score
        checkpoint = dump_checkpoint(trainer)
        checkpoint["between_steps"] = LAST not in names
        if before_validation:
            restart_validation(checkpoint)
        mine = self._write(checkpoint, names) if trainer.is_global_zero else []
        written = trainer.strategy.broadcast(mine)
        if BEST not in written:
            self.best_score = earlier
        if BEST in names:
            self._lost_score = None if BEST in written else score
        if LAST in written:
            self._kept_step = trainer.global_step
        if LAST in names:
            self._saved_step, self._saved_time, self._due = trainer.global_step, time.monotonic(), False

    def _write(self, checkpoint: dict[str, Any], names: tuple[str, ...]) -> list[str]:
        """The names that could be written. Each is a separate file, so that damage to one leaves the other intact."""
        written: list[str] = []
        path = self.folder
        try:
            for path in (self.folder / name for name in names):
                keep = self.settings.keep_previous and path.name == LAST
                checkpoint_files.write(checkpoint, path, PREVIOUS if keep else "")
                written.append(path.name)
        except OSError as error:
            log.error(
                "step %d: could NOT write %s (%s). Training continues, the earlier file is unchanged; free some space",
                checkpoint["global_step"],
                path,
                error.strerror or error,
            )
        return written
