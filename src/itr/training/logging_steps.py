"""Which training steps are logged."""

from __future__ import annotations

import lightning.pytorch as pl


def logs_now(trainer: pl.Trainer) -> bool:
    """Whether the current step is logged."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(every) and (trainer.global_step + 1) % every == 0
