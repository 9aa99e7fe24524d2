"""What the losses of `loss_cases.py` ask of a GPU, counted without one: kernels, bytes and operations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from costs import BANDWIDTH, TF32
from loss_cases import Loss

ONLY_WRITTEN = ("copy_", "fill_", "zero_")  # operations that don't read what they change
KERNEL, LAUNCH = 2e-6, 6e-6  # seconds that the smallest kernel takes, and the host to start one
BY = (
    f"kernels as counted in torch's operations, one after the other: each {KERNEL * 1e6:.0f} us, or its bytes at "
    f"{BANDWIDTH / 1e12:.1f} TB/s or operations at {TF32 / 1e12:.0f} TFLOP/s of an H200, whichever is longer, and not "
    f"less than {LAUNCH * 1e6:.0f} us of the host for each"
)


@dataclass
class Counted:
    """What a step asks for.

    Attributes:
        kernels: number of operations that compute something.
        read_or_written: bytes.
        operations: of products of matrices.
        busy: seconds of the GPU.
    """

    kernels: int = 0
    read_or_written: int = 0
    operations: int = 0
    busy: float = 0.0

    @property
    def seconds(self) -> float:
        """Of the GPU, or of the host that can't start kernels as fast as they end."""
        return max(self.busy, self.kernels * LAUNCH)


class Count(TorchDispatchMode):
    """Counts whatever is computed, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Counted()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let the operation be, and note its size; views and empty memory are none."""
        out = func(*args, **(kwargs or {}))
        made = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
        if func.is_view or not made or "empty" in func.__name__:
            return out
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        read = given[1:] if func.__name__.startswith(ONLY_WRITTEN) else given  # what is changed in place is both
        size = sum(_bytes(value) for value in read + made)
        operations = 2 * made[0].numel() * given[0].shape[-1] if func.__name__.startswith("mm") else 0
        self.found.kernels += 1
        self.found.read_or_written += size
        self.found.operations += operations
        self.found.busy += max(KERNEL, size / BANDWIDTH, operations / TF32)
        return out


def _bytes(value: Tensor) -> int:
    """What a tensor takes in memory; expanded ones repeat what they have."""
    own = [size for size, stride in zip(value.shape, value.stride(), strict=True) if stride or size == 1]
    return math.prod(own) * value.element_size()


def counted(name: str, batch: int, chunk: int) -> Counted:
    """What a step of a case asks for, with blocks of `chunk` rows; 0 for all at once."""
    with FakeTensorMode():
        loss = Loss(name, batch)
        with Count() as count:
            loss.step(chunk)
    return count.found


def row_of(name: str, chunk: int, found: Counted) -> dict[str, Any]:
    """A row of a table."""
    return {
        "case": name,
        "rows of a block": chunk or "all",
        "kernels": found.kernels,
        "GB": found.read_or_written / 1e9,
        "TFLOP": found.operations / 1e12,
        "ms of the GPU": found.busy * 1e3,
        "ms of the host": found.kernels * LAUNCH * 1e3,
    }
