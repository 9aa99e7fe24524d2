"""The random numbers of a training run, so that a run that goes on draws what it would have drawn."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from itr.distributed import process_number, stack, world_size

log = logging.getLogger(__name__)


def collect(device: torch.device) -> dict[str, Tensor]:
    """The state of each process's generators, uint8 [processes, bytes]. Every process must call this."""
    states = {"cpu": stack(torch.get_rng_state(), device)}
    if device.type == "cuda":
        states["cuda"] = stack(torch.cuda.get_rng_state(device), device)
    return states


def restore(states: dict[str, Tensor], device: torch.device) -> None:
    """Set this process's generators as `collect` found them, unless there were more or fewer processes."""
    if len(states["cpu"]) != world_size():
        log.info(
            "the checkpoint is of %d processes and this run of %d: random numbers start anew",
            len(states["cpu"]),
            world_size(),
        )
        return
    torch.set_rng_state(states["cpu"][process_number()].cpu().clone())
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"][process_number()].cpu().clone(), device)
