"""Which part of a pass each process does."""

from __future__ import annotations

import os

from itr.errors import UserError


def chunks_of(num_chunks: int, process: int, of: int) -> range:
    """The chunks of one process: equal stretches, each chunk in exactly one."""
    return range(process * num_chunks // of, (process + 1) * num_chunks // of)


def share(process: int | None, of: int | None) -> tuple[int, int]:
    """Number of this process, and how many there are: as given, or as torchrun says."""
    number = int(os.environ.get("RANK", 0)) if process is None else process
    world = int(os.environ.get("WORLD_SIZE", 1)) if of is None else of
    if not 0 <= number < world:
        raise UserError(f"process {number} of {world}: give --process 0 to {world - 1} with --of {world}")
    return number, world
