"""What the launcher of a run says by environment variables, before torch is imported."""

from __future__ import annotations

import os

RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


def started_again() -> bool:
    """Whether torchrun or SLURM has started this command before."""
    return any(int(os.environ.get(name) or 0) > 0 for name in RESTARTS)


def is_first_process() -> bool:
    """Whether no launcher says that this is another process of a run than the first."""
    return all(os.environ.get(name) in (None, "", "0") for name in RANKS)
