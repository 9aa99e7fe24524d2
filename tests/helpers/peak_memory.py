"""The peak memory of some code, measured in a separate process."""

from __future__ import annotations

import os
import subprocess
import sys

# VmHWM, since the peak that getrusage gives starts at that of the process which this one was forked from.
MEASURE = """
import sys, time, torch
torch.set_num_threads(1)
setting = int(sys.argv[1])
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
{prepare}
before, start = peak(), time.perf_counter()
{step}
print(peak() - before, time.perf_counter() - start)
"""


def measure(prepare: str, step: str, setting: int) -> tuple[float, float]:
    """The MiB by which `step` raises the peak after `prepare`, and its seconds; both can use the `setting`."""
    code = MEASURE.format(prepare=prepare, step=step)
    command = [sys.executable, "-c", code, str(setting)]
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }  # glibc gives back what is freed: no fragments count
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    mib, seconds = done.stdout.split()
    return float(mib), float(seconds)
