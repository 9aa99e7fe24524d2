"""What a training run leaves behind."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl

from itr.errors import UserError
from itr.runs.checkpoints.checkpointing import Checkpoints
from itr.runs.checkpoints.settings import BEST


def outcome(trainer: pl.Trainer) -> str:
    """What a training run that has come to its end leaves behind, in a sentence or two.

    Raises:
        UserError: it trained nothing, or what it trained is not on disk.
    """
    root, step = trainer.default_root_dir, trainer.global_step
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return f"the trial by --trainer.fast_dev_run wrote nothing; {root} is unchanged"
    saver = next((callback for callback in trainer.callbacks if isinstance(callback, Checkpoints)), None)  # type: ignore[attr-defined]
    if trainer.ckpt_path and saver and saver.resumed_step == step:
        return (
            f"nothing was left to train: {trainer.ckpt_path} has done {trainer.current_epoch} epochs ({step} steps); "
            f"trainer.max_epochs is {trainer.max_epochs}, trainer.max_steps {trainer.max_steps}. To go on, raise them"
        )
    if step == 0:
        raise UserError(
            f"no step was trained: see trainer.max_epochs ({trainer.max_epochs}), trainer.max_steps "
            f"({trainer.max_steps}), trainer.max_time and trainer.limit_train_batches ({trainer.limit_train_batches})"
        )
    if saver and (lost := saver.unwritten(step)):
        raise UserError(f"{lost}. Free some space in {root}")
    logs = Path(root, "logs").is_dir()
    parts = ", ".join(
        [*["checkpoints/"] * bool(saver), "config.yaml", *["logs/"] * logs, *["no checkpoint"] * (not saver)]
    )
    best = Path(root, "checkpoints", BEST)
    note = "" if not saver or best.is_file() else f"; there is no {BEST}, since no validation has scored the model"
    board = f" (`tensorboard --logdir {root}`)" if logs else ""
    return f"the run is in {root}: {parts}{board}{note}"
