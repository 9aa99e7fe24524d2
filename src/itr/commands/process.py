"""This process before torch is imported: what its launcher says of it, and how it uses the CPU and memory."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEPT = 2**30  # bytes; larger blocks are returned to the system when they are freed
_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")  # environment: the user's own choice


def started_again() -> bool:
    """Whether torchrun or SLURM has started this command before."""
    return any(int(os.environ.get(name) or 0) > 0 for name in RESTARTS)


def is_first_process() -> bool:
    """Whether no launcher says that this is another process of a run than the first."""
    return all(os.environ.get(name) in (None, "", "0") for name in RANKS)


def set_up_cpu() -> None:
    """Let idle threads sleep, and let the process keep the memory that it frees.

    Idle threads that spin take the cores from data workers and from other programs: with two training programs on two
    cores a step took ten times as long.

    glibc returns each freed block of 32 MB or more to the system. The activations of a batch are that large, so each
    layer gets new pages, which the system first fills with zeros: half of the time of a convolutional tower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.platform == "linux" and not any(name in os.environ for name in _OWN):
        with suppress(AttributeError, OSError):  # not glibc
            library = ctypes.CDLL(None)
            library.mallopt(_M_MMAP_THRESHOLD, _KEPT)
            library.mallopt(_M_TRIM_THRESHOLD, _KEPT)
