"""Points of a curve, each measured in a process of its own, and lines fitted to them.

On a CPU a point is measured in a fork, so that the memory that one point has taken is not on the account of the next,
and on one thread, which what else the machine does disturbs least. The process that forks must not compute with torch:
threads don't survive a fork. On a GPU all happens in one process, but for processes that train together on CPUs.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from measuring import device, seconds

T = TypeVar("T")
MIB = 2**20
M_MMAP_THRESHOLD = -3  # of malloc.h
SUPERSCRIPT = {1: "", 2: "²"}


@dataclass
class Point:
    """What one call took.

    Attributes:
        seconds: the median of several calls.
        mebibytes: most memory at a time during a call, beyond what there was before it.
    """

    seconds: float
    mebibytes: float


@dataclass
class Fit:
    """A sum of powers of x with least squares of the relative errors.

    Attributes:
        coefficients: by power.
        residual: the largest error, as a share of its point.
        r2: the share of the points' variance that the curve explains.
    """

    coefficients: dict[int, float]
    residual: float
    r2: float

    def told(self, unit: str, x: str, scale: float = 1.0) -> str:
        """The formula, its largest residual and R², in words."""
        parts = [
            f"{scale * c:.3g} {unit}" + (f" · {x}{SUPERSCRIPT[power]}" if power else "")
            for power, c in self.coefficients.items()
        ]
        formula = " + ".join(parts).replace("+ -", "- ")
        return f"Fitted: {formula}; largest residual {100 * self.residual:.0f} %, R² {self.r2:.4f}."


def fitted(x: list[float], y: list[float], powers: tuple[int, ...] = (0, 1)) -> Fit:
    """Fit `y` by powers of `x`, each point weighted by its size: a hundredth of each counts as much."""
    columns = np.stack([np.asarray(x, float) ** power for power in powers], axis=1)
    wanted = np.asarray(y, float)
    found = np.linalg.lstsq(columns / wanted[:, None], np.ones(len(wanted)), rcond=None)[0]
    errors = columns @ found - wanted
    spread = float(((wanted - wanted.mean()) ** 2).sum())
    r2 = 1 - float((errors**2).sum()) / spread if spread else 1.0
    return Fit(dict(zip(powers, found.tolist(), strict=True)), float(np.abs(errors / wanted).max()), r2)


def measured(build: Callable[[], Callable[[], object]], rounds: int) -> Point:
    """A point: `build` makes what is timed, and is not timed itself; nor is the first call."""

    def time() -> float:
        call = build()
        call()
        return statistics.median(seconds(call) for _ in range(rounds))

    def memory() -> float:
        if device() == "cpu":
            _return_freed_memory()
        call = build()
        call()  # what is made once, such as the state of the optimizer, is there before
        before = _forget_peak()
        call()
        return (_peak() - before) / MIB

    return Point(alone(time), alone(memory))


def alone(work: Callable[[], T]) -> T:
    """What `work` gives, on a CPU in a fork."""
    return work() if device() == "cuda" else forked([work])[0]


def forked(works: list[Callable[[], Any]]) -> list[Any]:
    """What each gives, all at the same time, each on a CPU in a process of its own.

    Raises:
        RuntimeError: one of them failed; stderr tells how.
    """
    context = starting()
    pipes = [context.Pipe(duplex=False) for _ in works]
    processes = [
        context.Process(target=_on_one_thread, args=(work, send)) for (_, send), work in zip(pipes, works, strict=True)
    ]
    with _without_gpu():
        for process in processes:
            process.start()
    for _, send in pipes:
        send.close()  # so that a reader notices the end of a process that failed
    try:
        return [receive.recv() for receive, _ in pipes]
    except EOFError:
        raise RuntimeError("a process that measures failed") from None
    finally:
        for process in processes:
            process.join()


def starting() -> Any:
    """How processes start: by a fork; anew where there is a GPU, since no optimizer steps in a fork that knows it."""
    return multiprocessing.get_context("spawn" if device() == "cuda" else "fork")


@contextlib.contextmanager
def _without_gpu() -> Iterator[None]:
    """Processes that start meanwhile see no GPU."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES")
        os.environ |= {} if before is None else {"CUDA_VISIBLE_DEVICES": before}


def _on_one_thread(work: Callable[[], Any], send: Any) -> None:
    torch.set_num_threads(1)
    send.send(work())


def _return_freed_memory() -> None:
    """Have the C library ask the system for each large block, so that its leftovers don't count; that takes time."""
    with contextlib.suppress(AttributeError, OSError):  # other systems count a little more
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)


def _forget_peak() -> int:
    """Bytes in use; `_peak` counts from now on."""
    if device() == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError):  # not every kernel can: then what was most before counts too
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if device() == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
