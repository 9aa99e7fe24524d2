"""Signals that ask a run to stop, and how all of its processes come to stop at the same step.

A handler only stores the signal. At the end of each step the processes start to exchange what they have received, and
read the result at the end of the next step, so that no step waits. Then all write one checkpoint together and end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from itr.commands.stages import FORWARDED
from itr.data.loading.workers import SIGNALS
from itr.distributed import world_size

SAME = 1.0  # seconds within which the same signal may arrive by two ways
log = logging.getLogger(__name__)


class Stopped(BaseException):
    """A signal has stopped a run in good order. This is not an error, and code that catches errors must not catch it.

    Args:
        signum: the signal.
        message: what to print.
        helper: whether Lightning started this process. Only the process that the user started gives the exit status:
            to Lightning a helper with any status but 0 has crashed.
    """

    def __init__(self, signum: int, message: str = "", helper: bool = False) -> None:
        super().__init__(message)
        self.signum, self.helper = signum, helper

    @property
    def status(self) -> int:
        """Exit status: 130 after SIGINT, 143 otherwise."""
        return 0 if self.helper else exit_status(self.signum)


def exit_status(signum: int) -> int:
    """130 after SIGINT, 143 after the others."""
    return 130 if signum == signal.SIGINT else 143


class Signals:
    """The signals received since `listen`. The first is stored, the second ends the process at once.

    Attributes:
        received: the first signal; 0 for none.
        patient: whether training checks `received` after each step; otherwise the first signal raises `Stopped` at
            once, since there is nothing to lose yet.
        children: processes that end with this one.
    """

    def __init__(self) -> None:
        self.received = 0
        self.patient = False
        self.children: Sequence[subprocess.Popen[bytes]] = ()
        self._when = 0.0
        self._earlier: dict[int, object] = {}

    def listen(self) -> None:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                earlier = signal.signal(signum, self._handle)
                self._earlier.setdefault(signum, earlier)

    def release(self) -> None:
        """Restore the earlier handlers."""
        if threading.current_thread() is threading.main_thread():
            for signum, handler in self._earlier.items():
                signal.signal(signum, handler)  # type: ignore[arg-type]
        self._earlier = {}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received:
            if not (_forwarded() and now - self._when < SAME):
                self._end(signum)
            return
        self.received, self._when = signum, now
        name = signal.Signals(signum).name
        if not self.patient:
            raise Stopped(signum, f"stopped by {name} before there was anything to save")
        _say(f"{name}: the run stops after this step and writes a checkpoint; a second signal ends it at once")

    def _end(self, signum: int) -> None:
        for child in self.children:
            child.kill()
        _say(f"{signal.Signals(signum).name} received again: ended at once")
        os._exit(exit_status(signum))


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the disk is full, or stderr is closed
        os.write(2, f"\nitr: {text}\n".encode())  # a handler may interrupt a print


def _forwarded() -> bool:
    """Whether the program that started this process forwards signals that may also have reached it directly."""
    return any(name in os.environ for name in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", FORWARDED))


class Agreement:
    """Numbers of all processes, reduced to their maximum, which all know one step later.

    They are exchanged between CPUs while the next step runs, and no step waits for them.
    """

    def __init__(self) -> None:
        self._group: dist.ProcessGroup | None = None
        self._numbers: torch.Tensor | None = None
        self._work: dist.Work | None = None

    def begin(self) -> None:
        """Make the process group. Every process must call this."""
        if world_size() > 1:
            group: Any = dist.new_group(backend="gloo")
            self._group = group

    def exchange(self, numbers: Sequence[int]) -> list[int]:
        """The maximum over all processes in the last call; alone, `numbers`. Every process must call this."""
        if self._group is None:
            return list(numbers)
        earlier = self.finish() or [0] * len(numbers)
        self._numbers = torch.tensor(numbers, dtype=torch.int64)
        self._work = dist.all_reduce(self._numbers, dist.ReduceOp.MAX, self._group, async_op=True)
        return earlier

    def finish(self) -> list[int]:
        """The result of the last `exchange`, if it has not been returned yet; else an empty list."""
        if self._work is None or self._numbers is None:
            return []
        self._work.wait()
        self._work = None
        return [int(number) for number in self._numbers]


def requeue() -> None:
    """Ask SLURM to queue the job again, unless it is an interactive one."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    name = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else job
    if not re.fullmatch(r"[0-9]+(_[0-9]+)?", name):
        log.warning("the SLURM job ID %r is not a number: the job is not queued again", name)
        return
    try:
        done = subprocess.run(["scontrol", "requeue", name], capture_output=True, text=True)
    except OSError as error:
        log.warning("SLURM job %s could not be queued again: scontrol: %s", name, error.strerror)
        return
    if done.returncode:
        log.warning("SLURM job %s could not be queued again: %s", name, (done.stderr or done.stdout).strip())
    else:
        log.info("SLURM job %s is queued again", name)
