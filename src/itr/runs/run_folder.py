"""The folder of a run: only one training at a time writes to it, and nothing is overwritten without being asked to."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import lightning.pytorch as pl

from itr.errors import UserError
from itr.files.locks import BusyError, locked
from itr.files.writing import check_writable
from itr.runs.checkpoints.checkpoint_files import BEST, LAST, PREVIOUS
from itr.runs.checkpoints.checkpointing import Checkpoints
from itr.runs.checkpoints.resume import started_again

OPTION = "--trainer.default_root_dir"
LOCK = ".run.lock"
PATIENCE = 30.0  # seconds that a restarted run waits for what is left of its last start


class FolderLock:
    """Lets one training at a time write to a run folder. Only the first process of a run holds the lock."""

    def __init__(self) -> None:
        self._held = ExitStack()

    def hold(self, root: Path) -> None:
        """Hold the lock until `release`, or until this process ends in any way.

        Raises:
            UserError: another training holds it, or the folder is not writable.
        """
        check_writable(root, OPTION)
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._held.enter_context(locked(root / LOCK, wait=False, patience=PATIENCE if started_again() else 0.0))
        except BusyError as busy:
            raise UserError(
                f"another `itr fit` is training in {root} ({busy.holder}). Wait for it, stop it, or choose another "
                f"folder by {OPTION}"
            ) from None
        except OSError as error:
            raise UserError(f"could not write to {root}: {error.strerror}; choose another folder by {OPTION}") from None

    def release(self) -> None:
        """Release the lock, if it is held."""
        self._held.close()


def check_new_run(root: Path, resumes: bool, overwrite: bool, checkpoints: bool) -> None:
    """Refuse to mix a run with one that is in the folder.

    Args:
        root: the run folder.
        resumes: whether the run resumes from a checkpoint.
        overwrite: whether an earlier run may be overwritten.
        checkpoints: whether the run writes checkpoints.

    Raises:
        UserError: the folder holds a run.
    """
    if not any((root / "checkpoints" / name).exists() for name in (LAST, BEST, PREVIOUS)):
        return
    if not checkpoints:
        raise UserError(
            f"{root} holds the checkpoints of a run, and with --trainer.enable_checkpointing false they would not be "
            f"those of this run; choose another folder by {OPTION}"
        )
    if not resumes and not overwrite:
        raise UserError(
            f"{root} already holds a run. Resume it by --ckpt_path last, choose another folder by {OPTION}, or give "
            "--overwrite true"
        )


def check_folders(root: Path, *parts: str) -> None:
    """Refuse a run folder, or folders in it, that cannot be written."""
    for folder in (root, *(root / part for part in parts)):
        check_writable(folder, OPTION)


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
    parts = "checkpoints/, config.yaml, logs/" if saver else "config.yaml, logs/, no checkpoint"
    best = Path(root, "checkpoints", BEST)
    note = "" if not saver or best.is_file() else f"; there is no {BEST}, since no validation has scored the model"
    return f"the run is in {root}: {parts} (`tensorboard --logdir {root}`){note}"
