"""Gather rows of all processes with exact gradients, and choose each process's device. All work on one process too."""

from __future__ import annotations

import os
import re
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from itr.errors import UserError
from itr.types import Encoded


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def choose_device(wanted: str, process: int = 0) -> str:
    """The name of the device to use; `auto` chooses this process's GPU if there are GPUs, and the CPU otherwise.

    Raises:
        UserError: the name is unknown, or there is no usable GPU.
    """
    if wanted != "auto":
        if not re.fullmatch(r"cpu|cuda(:\d+)?|mps", wanted):
            raise UserError(f"device is {wanted!r}; it must be auto, cpu, cuda, cuda:NUMBER or mps")
        if wanted.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"device is {wanted!r}, and this machine has no usable GPU; give --device cpu")
        return wanted
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', process)) % torch.cuda.device_count()}"


def process_number() -> int:
    """This process's rank among the processes that train together."""
    return dist.get_rank() if world_size() > 1 else 0


def stack(value: Tensor, device: torch.device) -> Tensor:
    """Stack the value [...] of each process: [processes, ...], on the CPU; communication uses `device`."""
    return gather(value[None].to(device)).cpu()


def gather(rows: Tensor) -> Tensor:
    """Stack the rows of all processes in rank order: [N, ...] -> [processes x N, ...]; N must be the same for all.

    The backward pass sums the gradients of each row over processes. If every process computes the same loss of all
    rows, or the loss of its own rows times the number of processes, DDP's mean over processes is then exactly the
    gradient of the loss of the whole batch.
    """
    if world_size() == 1:
        return rows
    if rows.dtype == torch.bool:  # not every communication library supports bool
        return gather(rows.to(torch.uint8)).bool()
    gathered: Tensor = _Gather.apply(rows)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered = rows.new_empty(world_size() * len(rows), *rows.shape[1:])
        if rows.numel():
            dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        own = gradient.new_empty(len(gradient) // world_size(), *gradient.shape[1:])
        if own.numel():
            dist.reduce_scatter_tensor(own, gradient)
        return own


def gather_encoded(encoded: Encoded, with_tokens: bool) -> Encoded:
    """Apply `gather` to each tensor of an `Encoded`, after padding token-level features, if any, to a common length."""
    if world_size() == 1:
        return encoded
    if with_tokens:
        encoded = encoded.padded(largest(encoded.tokens.shape[1], encoded.pooled.device))
    return encoded.map(gather)


def mean_of_processes(values: Tensor) -> Tensor:
    """The mean of values [...] over processes, without gradients; does not wait for the device."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world_size()


def largest(number: int, device: torch.device) -> int:
    """The largest number of all processes."""
    if world_size() == 1:
        return number
    value = torch.tensor(number, device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return int(value)


def gather_uneven(rows: Tensor) -> Tensor:
    """Stack the rows of all processes, whose numbers of rows may differ, without gradients."""
    if world_size() == 1:
        return rows
    count = torch.tensor(len(rows), device=rows.device)
    counts = [int(c) for c in gather(count[None])]
    padded = F.pad(rows, [0, 0] * (rows.dim() - 1) + [0, max(counts) - len(rows)])
    parts = gather(padded.detach()).split(max(counts))
    return torch.cat([part[:c] for part, c in zip(parts, counts, strict=True)])
