"""The peak memory of a call, and a profile of its time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

STATUS = Path("/proc/self/status")


def peak_of(work: Callable[[], object]) -> float:
    """Return by how many bytes the peak of this process, or of the GPU's allocator, rises during a call."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - before)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak to the memory in use
    before = _kibibytes("VmRSS")
    work()
    return 1024.0 * (_kibibytes("VmHWM") - before)


def _kibibytes(name: str) -> int:
    return int(next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:")).split()[1])


def shares_of(work: Callable[[], object], most: int = 6) -> dict[str, float]:
    """Return the share of the time by operation, for the slowest ones; on a GPU, of the time of kernels."""
    gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities) as found:
        work()
    # Each kernel is listed twice: by itself and under the operation that launched it.
    events = [e for e in found.key_averages() if e.device_type == DeviceType.CPU]
    taken = {e.key: float(e.self_device_time_total if gpu else e.self_cpu_time_total) for e in events}
    first = sorted(taken, key=lambda key: -taken[key])[:most]
    total = sum(taken.values()) or 1.0
    return {name: taken[name] / total for name in first}
