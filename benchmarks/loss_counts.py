"""Counts the kernels, bytes and operations that the losses of `loss_cases.py` need on a GPU, without a GPU."""

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

ONLY_WRITTEN = ("copy_", "fill_", "zero_")  # operations that do not read the tensor they change
KERNEL, LAUNCH = 2e-6, 6e-6  # seconds of the smallest kernel, and of launching one from the host
BY = (
    f"counted torch kernels, run one after the other: each takes the longest of {KERNEL * 1e6:.0f} us, its bytes at "
    f"{BANDWIDTH / 1e12:.1f} TB/s and its operations at {TF32 / 1e12:.0f} TFLOP/s of an H200; the host needs at least "
    f"{LAUNCH * 1e6:.0f} us to launch each"
)


@dataclass
class Counted:
    """The work of a step.

    Attributes:
        kernels: number of operations that compute something.
        read_or_written: bytes.
        operations: floating-point operations of matrix products.
        busy: seconds of GPU time.
    """

    kernels: int = 0
    read_or_written: int = 0
    operations: int = 0
    busy: float = 0.0

    @property
    def seconds(self) -> float:
        """Return the seconds of the GPU, or of the host if it launches kernels more slowly than they run."""
        return max(self.busy, self.kernels * LAUNCH)


class Count(TorchDispatchMode):
    """Counts all computation, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Counted()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and record its size; views and empty allocations do not count."""
        out = func(*args, **(kwargs or {}))
        made = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
        if func.is_view or not made or "empty" in func.__name__:
            return out
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        read = (
            given[1:] if func.__name__.startswith(ONLY_WRITTEN) else given
        )  # in-place operands are both read and written
        size = sum(_bytes(value) for value in read + made)
        operations = 2 * made[0].numel() * given[0].shape[-1] if func.__name__.startswith("mm") else 0
        self.found.kernels += 1
        self.found.read_or_written += size
        self.found.operations += operations
        self.found.busy += max(KERNEL, size / BANDWIDTH, operations / TF32)
        return out


def _bytes(value: Tensor) -> int:
    """Return the bytes that a tensor occupies; expanded dimensions occupy nothing."""
    own = [size for size, stride in zip(value.shape, value.stride(), strict=True) if stride or size == 1]
    return math.prod(own) * value.element_size()


def counted(name: str, batch: int, chunk: int) -> Counted:
    """Count the work of a step of a case, with blocks of `chunk` rows; 0 means without blocks."""
    with FakeTensorMode():
        loss = Loss(name, batch)
        with Count() as count:
            loss.step(chunk)
    return count.found


def row_of(name: str, chunk: int, found: Counted) -> dict[str, Any]:
    """Return a row of the table of counts."""
    return {
        "case": name,
        "rows per block": chunk or "all",
        "kernels": found.kernels,
        "GB": found.read_or_written / 1e9,
        "TFLOP": found.operations / 1e12,
        "GPU ms": found.busy * 1e3,
        "host ms": found.kernels * LAUNCH * 1e3,
    }
