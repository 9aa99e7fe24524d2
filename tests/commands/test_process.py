"""Memory that is freed stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
if sys.argv[1] == "ours":
    from itr.commands.process import set_up_cpu
    set_up_cpu()
import torch

def layer():
    return torch.zeros(16 << 20).sum()  # 64 MiB, freed at once

layer()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(32):
    layer()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(who: str, **variables: str) -> int:
    command = [sys.executable, "-c", FAULTS, who]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=variables | {"OMP_NUM_THREADS": "1"})
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries keep memory in other ways")
def test_freed_memory_is_used_again():
    default, ours = page_faults("default"), page_faults("ours")
    assert ours < default / 4
    assert page_faults("ours", MALLOC_TRIM_THRESHOLD_="131072") > default / 2  # the user's own choice counts
