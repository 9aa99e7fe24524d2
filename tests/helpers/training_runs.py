"""Runs that a test may kill, and callbacks that slow them down or stop them at a certain step."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from launching import ENOUGH
from tiny import TINY_VSE

HERE = Path(__file__).parent
STILL = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def options(shards: Path, folder: Path, *more: str) -> list[str]:
    """Of a small run with all its dropout, five steps an epoch."""
    where = [f"--data.root={shards}", "--data.batch_size=8", f"--trainer.default_root_dir={folder}"]
    return ["fit", *TINY_VSE, *where, *STILL, *more]


def start(arguments: list[str], log: Path, launcher: tuple[str, ...] = (), **more: str) -> subprocess.Popen[bytes]:
    """Start `itr` in its own process group, with its output in a file."""
    command = [sys.executable, *launcher, "-m", "itr", *arguments]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment() | more, start_new_session=True)


def environment() -> dict[str, str]:
    """That of a program that uses these callbacks."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}


def wait_for(path: Path, process: subprocess.Popen[bytes], seconds: float = ENOUGH) -> None:
    """Wait until a file exists."""
    _wait(path.exists, str(path), process, seconds)


def wait_for_text(log: Path, text: str, process: subprocess.Popen[bytes], seconds: float = ENOUGH) -> None:
    """Wait until a process has printed some text."""
    _wait(lambda: text in log.read_text(), repr(text), process, seconds)


def _wait(done: Callable[[], bool], what: str, process: subprocess.Popen[bytes], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert process.poll() is None, f"the process ended with {process.returncode}"
        assert time.monotonic() < end, f"no {what} after {seconds} s"
        time.sleep(0.02)


def checkpoint(folder: Path, name: str = "last") -> dict[str, Any]:
    """What a run folder's checkpoint holds."""
    found: dict[str, Any] = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return found


def children(process: int) -> list[int]:
    """The running child processes of a process."""
    found = Path(f"/proc/{process}/task/{process}/children")
    return [int(number) for number in found.read_text().split()] if found.exists() else []


class Slow(pl.Callback):
    """Sleeps before each training batch from some step on, and says so."""

    def __init__(self, seconds: float, after: int = 0) -> None:
        self.seconds, self.after = seconds, after

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step >= self.after:
            print(f"slow after step {trainer.global_step}", flush=True)
            time.sleep(self.seconds)


class SignalAt(pl.Callback):
    """Sends this process a signal in a hook after a number of optimizer steps."""

    def __init__(self, hook: str, step: int, signum: int = int(signal.SIGTERM)) -> None:
        self.step, self.signum, self.sent = step, signum, False
        setattr(self, hook, self._send)

    def _send(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step and not trainer.sanity_checking and not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.signum)


class EndsAt(pl.Callback):
    """Before the given batch, counted from 1 over all epochs, fails, or lets Lightning end the run early."""

    def __init__(self, batch: int, fails: bool = True) -> None:
        self.batch, self.fails, self.begun = batch, fails, 0

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.begun += 1
        if self.begun == self.batch:
            assert not self.fails, f"batch {self.batch} fails"
            trainer.should_stop = True


class LimitsMemory(pl.Callback):
    """Leaves this process so many MiB more than it has when the first batch begins."""

    def __init__(self, mebibytes: int) -> None:
        self.mebibytes = mebibytes

    def on_train_batch_start(self, *_: Any) -> None:
        has = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmSize" in line)
        resource.setrlimit(resource.RLIMIT_AS, [(int(has) << 10) + (self.mebibytes << 20)] * 2)
