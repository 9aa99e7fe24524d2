"""Points of a curve, each measured in its own process, and curves fitted to them.

On a CPU a point is measured in a fork, so that memory used by one point does not count for the next, and on one thread,
which is least affected by other load on the machine. The parent process must not compute with torch, because threads do
not survive a fork. On a GPU everything runs in one process, except for processes that train together on CPUs.
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
M_MMAP_THRESHOLD = -3  # from malloc.h
SUPERSCRIPT = {1: "", 2: "²"}


@dataclass
class Point:
    """Time and memory of one call.

    Attributes:
        seconds: median of several calls.
        mebibytes: rise of the peak memory during a call.
    """

    seconds: float
    mebibytes: float


@dataclass
class Fit:
    """A sum of powers of x, fitted by least squares of the relative errors.

    Attributes:
        coefficients: coefficients by power.
        residual: largest relative error.
        r2: share of the points' variance that the curve explains.
    """

    coefficients: dict[int, float]
    residual: float
    r2: float

    def summary(self, unit: str, x: str, scale: float = 1.0) -> str:
        """Return the formula, its largest residual and R² as text."""
        parts = [
            f"{scale * c:.3g} {unit}" + (f" · {x}{SUPERSCRIPT[power]}" if power else "")
            for power, c in self.coefficients.items()
        ]
        formula = " + ".join(parts).replace("+ -", "- ")
        return f"Fitted: {formula}; largest residual {100 * self.residual:.0f} %, R² {self.r2:.4f}."


def fitted(x: list[float], y: list[float], powers: tuple[int, ...] = (0, 1)) -> Fit:
    """Fit `y` by powers of `x`, weighting all relative errors equally."""
    columns = np.stack([np.asarray(x, float) ** power for power in powers], axis=1)
    wanted = np.asarray(y, float)
    found = np.linalg.lstsq(columns / wanted[:, None], np.ones(len(wanted)), rcond=None)[0]
    errors = columns @ found - wanted
    spread = float(((wanted - wanted.mean()) ** 2).sum())
    r2 = 1 - float((errors**2).sum()) / spread if spread else 1.0
    return Fit(dict(zip(powers, found.tolist(), strict=True)), float(np.abs(errors / wanted).max()), r2)


def measured(build: Callable[[], Callable[[], object]], rounds: int) -> Point:
    """Measure a point: `build` returns the call to time; neither `build` nor the first call is timed."""

    def time() -> float:
        call = build()
        call()
        return statistics.median(seconds(call) for _ in range(rounds))

    def memory() -> float:
        if device() == "cpu":
            _return_freed_memory()
        call = build()
        call()  # allocates whatever persists, such as the optimizer state
        before = _reset_peak()
        call()
        return (_peak() - before) / MIB

    return Point(alone(time), alone(memory))


def alone(work: Callable[[], T]) -> T:
    """Return the result of `work`, which runs in a fork on a CPU."""
    return work() if device() == "cuda" else forked([work])[0]


def forked(works: list[Callable[[], Any]]) -> list[Any]:
    """Return the results of all works, which run at the same time, each in its own CPU process.

    Raises:
        RuntimeError: one of them failed; its error is on stderr.
    """
    context = start_method()
    pipes = [context.Pipe(duplex=False) for _ in works]
    processes = [
        context.Process(target=_on_one_thread, args=(work, send)) for (_, send), work in zip(pipes, works, strict=True)
    ]
    with _without_gpu():
        for process in processes:
            process.start()
    for _, send in pipes:
        send.close()  # so that the reader notices when a process has failed
    try:
        return [receive.recv() for receive, _ in pipes]
    except EOFError:
        raise RuntimeError("a measuring process failed; its error is above") from None
    finally:
        for process in processes:
            process.join()


def start_method() -> Any:
    """Return the start method: fork, or spawn if there is a GPU, because optimizers fail in a fork that sees it."""
    return multiprocessing.get_context("spawn" if device() == "cuda" else "fork")


@contextlib.contextmanager
def _without_gpu() -> Iterator[None]:
    """Hide the GPU from processes that start in this context."""
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
    """Make malloc return large blocks to the system, so that they do not count. This slows allocation down."""
    with contextlib.suppress(AttributeError, OSError):  # other systems report slightly more
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)


def _reset_peak() -> int:
    """Return the bytes in use, and reset the peak that `_peak` reads."""
    if device() == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError):  # not every kernel supports this; then an earlier peak counts too
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if device() == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
