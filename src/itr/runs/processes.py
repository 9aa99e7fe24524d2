"""The processes of a run on one machine: all of them end when one fails, and the reason is reported once."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl

from itr.data.loading.workers import SIGNALS
from itr.errors import UserError
from itr.private_api.lightning import script_launcher
from itr.runs.stopping import exit_status

if TYPE_CHECKING:
    from itr.private_api.lightning import ScriptLauncher

LAUNCHER = "ITR_LAUNCHER"  # environment: the process that starts the others, if Lightning does
PATIENCE = 120.0  # seconds that the other processes of a machine have to end after the first
LOOK = 5.0  # seconds between two checks
STOPS = {status for signum in SIGNALS for status in (-signum, exit_status(signum))}
NAMES = {known.value: known.name for known in signal.Signals}
_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def follow_launcher() -> None:
    """End at once when the process that started this one dies, so that no process is left waiting.

    That is torchrun, or the first process if Lightning started the others. Only Linux can do it; elsewhere the others
    end when a collective fails or times out.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        launcher = os.getppid()
    elif LAUNCHER in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
        launcher = int(os.environ[LAUNCHER])
    else:
        os.environ[LAUNCHER] = str(os.getpid())
        return
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:  # it died before the line above
        os.kill(os.getpid(), signal.SIGKILL)


def watch_processes(trainer: pl.Trainer) -> None:
    """End this process with status 1 and a reason when a process fails that Lightning has started on this machine.

    NOTE: Lightning watches them too, but kills everything by SIGKILL at once: this process may or may not get to print
    the reason, and its status is 1 or 137. Lightning's thread shares the list of processes with the launcher, and does
    nothing once that list is empty.
    """
    launcher = script_launcher(trainer)
    if launcher is None:
        return
    launch = launcher.launch

    def launch_and_watch(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def watched(*args: Any, **kwargs: Any) -> Any:
            started = launcher.procs
            launcher.procs = list(started)
            started.clear()
            threading.Thread(target=_watch, args=[launcher], name="watch-processes", daemon=True).start()
            return function(*args, **kwargs)

        return launch(watched, *args, **kwargs)

    launcher.launch = launch_and_watch  # type: ignore[method-assign]


def _watch(launcher: ScriptLauncher) -> None:
    """End this process one check after a failure was seen, which leaves it time to report more and end by itself."""
    failed = ""
    while any(process.poll() != 0 for process in launcher.procs):
        if failed:
            status = _status(launcher.procs)
            with suppress(OSError):  # the disk is full, or stderr is closed
                os.write(2, f"\nitr: {'error: ' * (status == 1)}{failed}\n".encode())
            _kill(launcher.procs)
            os._exit(status)  # this process may be stuck in a driver, waiting for those that are gone
        failed = _failed(launcher.procs)
        time.sleep(LOOK)


def _status(started: Sequence[subprocess.Popen[bytes]]) -> int:
    """1, or the status of a stop if a signal stopped one of them: this process may not have acted on it yet."""
    for process in started:
        if (status := process.poll() or 0) in STOPS:
            return exit_status(-status) if status < 0 else status
    return 1


def _kill(started: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in started:
        process.kill()


def wait_for_processes(trainer: pl.Trainer) -> None:
    """Wait for the processes that Lightning started on this machine: Lightning itself ignores how they end.

    From here on the thread of `watch_processes` no longer watches them, so that a failure is reported once.

    Raises:
        UserError: one failed or did not end, so the run failed, even though this process succeeded.
    """
    launcher = script_launcher(trainer)
    if launcher is None:
        return
    started, launcher.procs = launcher.procs, []
    end = time.monotonic() + PATIENCE
    while not (failed := _failed(started)) and any(process.poll() is None for process in started):
        if time.monotonic() > end:
            failed = f"the other processes of this machine did not end within {PATIENCE:.0f} s of this one"
            break
        time.sleep(0.05)
    if failed:
        _kill(started)
        raise UserError(failed)


def _failed(started: Sequence[subprocess.Popen[bytes]]) -> str:
    """A sentence about the first process that ended with an error; empty if none did."""
    for rank, process in enumerate(started, 1):
        if (status := process.poll() or 0) > 0:
            return f"process {rank} of this machine ended with status {status}; its message is above"
        if status < 0:
            name = NAMES.get(-status, f"signal {-status}")
            hint = ", as happens when a machine runs out of memory" if name == "SIGKILL" else ""
            return f"process {rank} of this machine was ended by {name}{hint}"
    return ""
