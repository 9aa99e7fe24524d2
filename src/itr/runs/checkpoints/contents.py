"""What the checkpoint of a run contains beyond what Lightning puts there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from itr.errors import UserError

MONITOR = "val/rsum"
FORMAT = 1


def check_format(checkpoint: Mapping[str, Any], path: str) -> None:
    """Refuse a checkpoint that a newer version has written.

    Args:
        checkpoint: its contents.
        path: the file, for the message.

    Raises:
        UserError: its format is newer than ours.
    """
    found = checkpoint.get("itr_format", 0)
    if found > FORMAT:
        raise UserError(f"{path} has format {found}, but this version reads up to {FORMAT}: update itr")


def lightning_best_score(checkpoint: Mapping[str, Any]) -> float | None:
    """The best score in a checkpoint of the first versions, which Lightning's ModelCheckpoint wrote; else None."""
    score = None
    for state in checkpoint["callbacks"].values():
        if isinstance(state, Mapping) and state.get("monitor") == MONITOR:
            score = state.get("best_model_score", score)
    return None if score is None else float(score)


def restart_validation(checkpoint: dict[str, Any]) -> None:
    """Change the state of a run in the middle of its validation to that of a run which is about to begin it."""
    begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    progress = {"total": begun, "current": begun, "is_last_batch": False}
    checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] = progress
