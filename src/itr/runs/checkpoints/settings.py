"""The options of `--checkpoint`, and the names of the files."""

from __future__ import annotations

import math
from dataclasses import dataclass

from itr.errors import UserError

LAST, BEST, PREVIOUS = "last.ckpt", "best.ckpt", "previous.ckpt"


@dataclass(frozen=True)
class CheckpointSettings:
    """When a run writes `checkpoints/last.ckpt`, besides the end of each validation and epoch.

    Args:
        every_minutes: minutes between two of them within an epoch; 0 for none.
        every_steps: optimizer steps between two of them; 0 for none.
        keep_previous: keep the one before as `previous.ckpt` until the run ends, in case the disk damages the last.
    """

    every_minutes: float = 30.0
    every_steps: int = 0
    keep_previous: bool = True

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for name in ("every_minutes", "every_steps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"checkpoint.{name} is {getattr(self, name)}; it must be 0 (off) or a positive number")
