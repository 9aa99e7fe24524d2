"""Run the fuzz targets for a given time, and count how their examples end.

    python tests/fuzz/campaign.py --seconds 3600 --out fuzz.json

Each time slice runs in a process with limited memory, so that a target that kills it or hangs in a library is
counted too. The file is rewritten after each slice.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "helpers")]
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="itr-fuzz-cache-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402  the paths come first
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from hypothesis.configuration import set_hypothesis_home_dir  # noqa: E402

import judging  # noqa: E402
from all_targets import TARGETS  # noqa: E402
from itr.files.writing import whole_file  # noqa: E402
from judging import Bug, Target  # noqa: E402

MEMORY = 3 * 2**30  # bytes of address space beyond the process's initial size
GRACE = 60.0  # seconds after the end of a slice until its process is killed


class Stop(BaseException):
    """The time of a slice is up."""


def judge_for(target: Target, seconds: float, number: int, last: Path) -> dict[str, Any]:
    """Judge examples for some time; count how they ended, and the bugs by where they were raised."""
    ended: Counter[str] = Counter()
    bugs: dict[str, dict[str, Any]] = {}
    until = time.monotonic() + seconds

    @seed(number)
    @settings(max_examples=10**9, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(target.examples())
    def property_(example: object) -> None:
        if time.monotonic() > until:
            raise Stop
        last.write_text(repr(example)[:100_000], encoding="utf-8", errors="backslashreplace")
        try:
            ended[target.judge(example)] += 1
        except Bug as bug:
            ended["bug"] += 1
            key = where(bug)
            known = bugs.setdefault(key, {"message": str(bug), "example": repr(example)[:4000], "times": 0})
            known["times"] += 1

    with suppress(Stop):
        property_()
    return {"ended": ended, "bugs": bugs}


def where(bug: Bug) -> str:
    """The identity of a bug: the type of the error and the last line of itr in its traceback."""
    cause = bug.__cause__ or bug
    frames = [f for f in traceback.extract_tb(cause.__traceback__) if "/itr/" in f.filename]
    last = f"{Path(frames[-1].filename).name}:{frames[-1].name}:{frames[-1].lineno}" if frames else "?"
    text = "" if bug.__cause__ else str(bug)[:80]
    return f"{type(cause).__name__} at {last} {text}".strip()


def run_slice(target: Target, seconds: float, number: int, folder: Path) -> dict[str, Any]:
    """Run a target in a process; return what it found, or how it died."""
    result, last, words = folder / "result.json", folder / "last.txt", folder / "stderr.txt"
    result.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        code = 1
        try:
            os.dup2(os.open(words, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)  # image libraries print many warnings
            judging._home[:] = [tempfile.mkdtemp(prefix="itr-fuzz-slice-", dir=folder)]
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
            result.write_text(json.dumps(judge_for(target, seconds, number, last)))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    status = wait_for(child, seconds + GRACE)
    if status == 0 and result.is_file():
        return json.loads(result.read_text())
    how = "the process hangs and was killed" if status == -signal.SIGKILL else f"the process ended with {status}"
    example = last.read_text()[:4000] if last.is_file() else "?"
    return {"ended": {"bug": 1}, "bugs": {how: {"message": words.read_text()[-1000:], "example": example, "times": 1}}}


def wait_for(child: int, seconds: float) -> int:
    """The exit status of a process, which is killed when the time is up."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def add(total: dict[str, Any], found: dict[str, Any]) -> None:
    """Add a slice's counts to those of its target."""
    for name, count in found["ended"].items():
        total["ended"][name] = total["ended"].get(name, 0) + count
    for key, bug in found["bugs"].items():
        known = total["bugs"].setdefault(key, {**bug, "times": 0})
        known["times"] += bug["times"]


def main() -> None:
    """Run the targets in turn until the time is up."""
    parser = argparse.ArgumentParser(description="Fuzz every reader for a given time and count the results.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--slice", type=float, default=20, help="seconds of one target at a time")
    parser.add_argument("--targets", default="", help="part of the names of those to run; all by default")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; else it is printed at the end")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [target for target in TARGETS if options.targets in target.name]
    totals: dict[str, Any] = {target.name: {"ended": {}, "bugs": {}, "seconds": 0.0} for target in chosen}
    began, base = time.monotonic(), int.from_bytes(os.urandom(4), "big")
    with tempfile.TemporaryDirectory(prefix="itr-fuzz-campaign-") as folder:
        set_hypothesis_home_dir(folder)
        for target in chosen:  # creates the source material once; the processes of the slices inherit it
            if target.sound is not None:
                target.judge(target.sound)
        round_ = 0
        while (left := options.seconds - (time.monotonic() - began)) > 0:
            target = chosen[round_ % len(chosen)]
            start = time.monotonic()
            add(totals[target.name], run_slice(target, min(options.slice, left), base + round_, Path(folder)))
            totals[target.name]["seconds"] += time.monotonic() - start
            round_ += 1
            write(options.out, totals, time.monotonic() - began, base)
    if options.out is None:
        print(json.dumps(summary(totals, time.monotonic() - began, base), indent=1))


def summary(totals: dict[str, Any], seconds: float, base: int) -> dict[str, Any]:
    """All counts and their sums."""
    ended: Counter[str] = Counter()
    for total in totals.values():
        ended.update(total["ended"])
    return {"seconds": round(seconds), "seed": base, "examples": sum(ended.values()), "ended": ended, "targets": totals}


def write(out: Path | None, totals: dict[str, Any], seconds: float, base: int) -> None:
    """Write the counts so far, atomically."""
    if out is not None:
        with whole_file(out) as file:
            file.write((json.dumps(summary(totals, seconds, base), indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
