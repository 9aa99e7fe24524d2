"""Signals that ask a run to stop, and how all of its processes come to stop at the same step.

A handler only remembers the signal. At the end of each step the processes tell each other what they have heard, and
hear at the end of the next what the others said, so that nobody waits. Then all write one checkpoint together and end.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from itr.commands.stages import HANDED_ON
from itr.data.loading.workers import SIGNALS
from itr.distributed import world_size

if TYPE_CHECKING:  # the workers of a loader import this module too
    import lightning.pytorch as pl

SAME = 1.0  # seconds within which two who pass signals on may deliver the same one
log = logging.getLogger(__name__)


class Stopped(BaseException):
    """A signal has ended a run in good order. No error: nothing that catches errors may take it for one.

    Args:
        signum: the signal.
        told: what there is to say of it.
        helper: whether the process was started by the one that the user started, which alone gives the exit status:
            Lightning takes a helper that ends with another status than 0 for one that crashed.
    """

    def __init__(self, signum: int, told: str = "", helper: bool = False) -> None:
        super().__init__(told)
        self.signum, self.told, self.helper = signum, told, helper

    @property
    def status(self) -> int:
        """Exit status: 130 after SIGINT, 143 otherwise."""
        return 0 if self.helper else exit_status(self.signum)


def exit_status(signum: int) -> int:
    """130 after SIGINT, 143 after the others."""
    return 130 if signum == signal.SIGINT else 143


class Signals:
    """What has been received since `listen`. The first signal is remembered, the second ends the process at once.

    Attributes:
        received: the first signal; 0 for none.
        patient: whether somebody looks at `received` from step to step; otherwise the first signal ends the run by
            `Stopped` where it stands, since there is nothing yet to lose.
        children: processes that end with this one.
    """

    def __init__(self) -> None:
        self.received = 0
        self.patient = False
        self.children: Sequence[subprocess.Popen[bytes]] = ()
        self._when = 0.0
        self._earlier: dict[int, object] = {}

    def listen(self) -> None:
        """Take over the signals."""
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                earlier = signal.signal(signum, self._handle)
                self._earlier.setdefault(signum, earlier)

    def release(self) -> None:
        """Give the signals back."""
        if threading.current_thread() is threading.main_thread():
            for signum, handler in self._earlier.items():
                signal.signal(signum, handler)  # type: ignore[arg-type]
        self._earlier = {}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received:
            if not (_handed_on() and now - self._when < SAME):
                self._end(signum)
            return
        self.received, self._when = signum, now
        name = signal.Signals(signum).name
        if not self.patient:
            raise Stopped(signum, f"stopped by {name} before there was anything to keep")
        _say(f"{name}: the run stops after this step and keeps its state; the signal once more ends it at once")

    def _end(self, signum: int) -> None:
        for child in self.children:
            child.kill()
        _say(f"{signal.Signals(signum).name} once more: ended at once")
        os._exit(exit_status(signum))


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # no room, or nobody who listens
        os.write(2, f"\nitr: {text}\n".encode())  # a handler may interrupt a print


def _handed_on() -> bool:
    """Whether whoever started this process passes on signals that may have reached it already."""
    return any(name in os.environ for name in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", HANDED_ON))


@atexit.register
def end_workers() -> None:
    """End what loads data for this process, when it ends: Python sends each a single SIGTERM, and waits."""
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    if workers and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would take their end for an accident
    for worker in workers:
        worker.kill()


class Agreement:
    """What any process wishes, known to all of them one step later.

    Numbers travel between CPUs while the next step runs; the step itself waits for nothing.
    """

    def __init__(self) -> None:
        self._group: dist.ProcessGroup | None = None
        self._wishes: torch.Tensor | None = None
        self._work: dist.Work | None = None

    def begin(self) -> None:
        """Open the way between the processes. Every process must call this."""
        if world_size() > 1:
            group: Any = dist.new_group(backend="gloo")
            self._group = group

    def exchange(self, wishes: Sequence[int]) -> list[int]:
        """The largest that any process wished in the last call; alone, what is wished now. Every process calls it."""
        if self._group is None:
            return list(wishes)
        heard = self.finish() or [0] * len(wishes)
        self._wishes = torch.tensor(wishes, dtype=torch.int64)
        self._work = dist.all_reduce(self._wishes, dist.ReduceOp.MAX, self._group, async_op=True)
        return heard

    def finish(self) -> list[int]:
        """What the last call brought, which nobody has heard yet."""
        if self._work is None or self._wishes is None:
            return []
        self._work.wait()
        self._work = None
        return [int(wish) for wish in self._wishes]


def requeue() -> None:
    """Ask SLURM to start the job again, where it runs one that nobody sits in front of."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    name = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else job
    if not re.fullmatch(r"[0-9]+(_[0-9]+)?", name):
        log.warning("the SLURM job is called %r, which is no number: it is not queued again", name)
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


def leave_signals_alone(trainer: pl.Trainer) -> None:
    """Keep Lightning from handling signals too.

    NOTE: its handlers talk to other processes and write checkpoints wherever the signal happens to arrive, and each
    step waits for a broadcast of what rank 0 has received. `Checkpoints` does this at the end of steps, for any rank.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
