"""The random state of a training run, so that a resumed run draws the numbers that it would have drawn."""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itr.distributed import process_number, stack, world_size

log = logging.getLogger(__name__)


def collect(device: torch.device) -> dict[str, Tensor]:
    """The state of each process's generators by name [processes, ...]. Every process must call this."""
    states = {"cpu": torch.get_rng_state(), **_python(), **_numpy()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {name: stack(state, device) for name, state in states.items()}


def restore(states: dict[str, Tensor], device: torch.device) -> None:
    """Restore the generators of this process, unless the number of processes has changed."""
    if len(states["cpu"]) != world_size():
        log.info(
            "the checkpoint is of %d processes and this run of %d: random numbers start from scratch",
            len(states["cpu"]),
            world_size(),
        )
        return
    own = {name: state[process_number()].cpu().clone() for name, state in states.items()}
    torch.set_rng_state(own["cpu"])
    if device.type == "cuda" and "cuda" in own:
        torch.cuda.set_rng_state(own["cuda"], device)
    if "python" in own:  # checkpoints of the first versions have neither Python's nor numpy's
        kept, gauss = own["python_gauss"].tolist()
        random.setstate((3, tuple(own["python"].tolist()), gauss if kept else None))
        *numbers, position = own["numpy"].tolist()
        kept, gauss = own["numpy_gauss"].tolist()
        np.random.set_state(("MT19937", np.array(numbers, dtype=np.uint32), position, int(kept), gauss))


def _python() -> dict[str, Tensor]:
    _, numbers, gauss = random.getstate()
    return {"python": torch.tensor(numbers), "python_gauss": _gauss(gauss is not None, gauss or 0.0)}


def _numpy() -> dict[str, Tensor]:
    state: Any = np.random.get_state(legacy=False)
    numbers = [*state["state"]["key"].tolist(), state["state"]["pos"]]
    return {"numpy": torch.tensor(numbers), "numpy_gauss": _gauss(state["has_gauss"], state["gauss"])}


def _gauss(kept: bool, value: float) -> Tensor:
    """Whether a generator has a normal number ready for the next call, and which."""
    return torch.tensor([float(kept), value], dtype=torch.float64)
