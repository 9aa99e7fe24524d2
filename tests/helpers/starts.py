"""Run the tests of rare faults many times, and count their outcomes.

    python tests/helpers/starts.py --times 20 [--faults 'rank 0']

The faults: two runs in one folder, a killed rank 0, a full disk, and a shard that changes under a run. Each test starts
real runs and checks the named outcome: exit status, message, and what is left in the run folder. Prints one line a test
and fault; exit status 1 if any run of a test has failed, or has not run at all.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
RANK_0 = "tests/runs/test_clusters.py::test_when_a_rank_is_killed_all_end_and_the_status_shows_it"
TESTS = {
    "two runs in one folder, the second later": (
        "tests/runs/test_run_folder.py::test_of_two_runs_in_one_folder_the_second_is_refused_and_the_first_goes_on"
    ),
    "two runs in one folder, started together": (
        "tests/runs/test_run_folder.py::test_two_runs_that_start_together_do_not_share_a_folder"
    ),
    "rank 0 killed, started by Lightning": f"{RANK_0}[0-started_by_lightning]",
    "rank 0 killed, started by torchrun": f"{RANK_0}[0-torchrun_on_one_node]",
    "full disk during a run": (
        "tests/runs/test_stopping.py::test_a_full_disk_neither_stops_training_nor_harms_the_earlier_file"
    ),
    "disk that takes no checkpoint at all": (
        "tests/runs/test_run_folder.py::test_a_disk_that_takes_no_checkpoint_fails_the_run_and_its_evaluation"
    ),
    "changed shard under a run": (
        "tests/runs/test_changed_data.py::test_a_shard_that_changes_under_a_run_ends_it[train]"
    ),
}


def once(test: str) -> tuple[bool, float, str]:
    """Run a test: whether it passed (a skipped test did not), its seconds, and its output."""
    begin = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", test]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    passed = done.returncode == 0 and re.search(r"^\d+ passed in", done.stdout, flags=re.MULTILINE) is not None
    return passed, time.monotonic() - begin, done.stdout + done.stderr


def main() -> int:
    """Run each test as often as asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--faults", default="", help="only those whose name contains this")
    options = parser.parse_args()
    times, failures = options.times, 0
    for fault, test in TESTS.items():
        if options.faults not in fault:
            continue
        found = [once(test) for _ in range(times)]
        failed = [output for passed, _, output in found if not passed]
        seconds = [seconds for _, seconds, _ in found]
        print(
            f"{fault}: {times - len(failed)} of {times} as named (median {statistics.median(seconds):.0f} s, "
            f"longest {max(seconds):.0f} s)",
            *(output[-3000:] for output in failed),
            sep="\n",
            flush=True,
        )
        failures += len(failed)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
