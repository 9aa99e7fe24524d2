"""The folder of a run: only one training at a time writes to it, and nothing is overwritten without being asked to."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from itr.commands.inputs import checkpoint_names
from itr.commands.process import started_again
from itr.errors import UserError
from itr.files.locks import BusyError, locked
from itr.files.writing import check_writable
from itr.runs.checkpoints.settings import BEST, LAST, PREVIOUS

RUN_FOLDER = "runs/itr"  # unless the option says otherwise
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


def refuse_without_best(root: Path) -> None:
    """Refuse to measure a run that has no best checkpoint: without one, the model would have random weights.

    Raises:
        UserError: the folder holds a run.
    """
    folder = root / "checkpoints"
    if (folder / BEST).is_file() or not any((root / part).exists() for part in ("checkpoints", "logs", "config.yaml")):
        return
    there = f"{checkpoint_names(folder)}; give --ckpt_path" if any(folder.glob("*.ckpt")) else "no checkpoint"
    raise UserError(
        f"the run in {root} has no {BEST} to measure: {folder} holds {there}. To measure the model that the config "
        f"builds instead, choose a folder without a run by {OPTION}"
    )
