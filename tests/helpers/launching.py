"""Runs of several processes, started as users start them, and checks that no process is left."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn

from itr.backbones import Backbone
from itr.methods import Method, MethodModule
from tiny import TINY_VSE

ENOUGH = 300.0  # seconds; a generous limit for slow and busy machines
MARK = "ITR_TEST_RUN"  # environment variable that identifies the processes of a run
CLUSTER = ("SLURM_", "MASTER_", "TORCHELASTIC_", "ITR_", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "RANK", "PL_GLOBAL")


def free_port() -> int:
    """A free port outside the range of ephemeral ports, so that it is still free when the run uses it."""
    for port in random.SystemRandom().sample(range(10_000, 32_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
    raise OSError("no port is free")


def fit(shards: Path, folder: Path, *options: str) -> list[str]:
    """A command line of `itr fit` for a tiny model on the CPU."""
    few = ["--data.batch_size=4", "--data.num_workers=1", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    where = [f"--data.root={shards}", f"--trainer.default_root_dir={folder}"]
    return ["-m", "itr", "fit", *TINY_VSE, *where, *few, *quiet, *options]


def torchrun(*options: str) -> list[str]:
    return ["-m", "torch.distributed.run", *options]


class Run:
    """The processes of a run; leaving the `with` block kills those that are left."""

    def __init__(self, log: Path) -> None:
        self.mark, self.log, self.port = uuid.uuid4().hex, log, free_port()
        self.started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.alive():
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(process, 9)
        for process in self.started:
            process.wait()

    def start(self, arguments: Sequence[str], prefix: Sequence[str] = (), **variables: object) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(CLUSTER)}
        root = Path(__file__).parents[2]
        kept |= {"PYTHONPATH": f"{root / 'src'}:{root / 'tests' / 'helpers'}", MARK: self.mark}
        kept["PYTHONFAULTHANDLER"] = "1"  # see `stacks`
        environment = kept | {name: str(value) for name, value in variables.items()}
        with self.log.open("ab") as log:
            self.started.append(
                subprocess.Popen(
                    [*prefix, sys.executable, *arguments], env=environment, stdout=log, stderr=subprocess.STDOUT
                )
            )

    def statuses(self, seconds: float) -> list[int]:
        """Wait up to some seconds for the started processes, and return their exit statuses."""
        end = time.monotonic() + seconds
        try:
            return [process.wait(max(0.0, end - time.monotonic())) for process in self.started]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds:.0f} s: {self.stacks()}") from None

    def stacks(self) -> str:
        """Abort the processes, and return their output with the stack of each thread."""
        for process in self.alive():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGABRT)
        self.left_after(10)
        return self.said()[-20_000:]

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def alive(self, **variables: object) -> list[int]:
        """The ids of this run's processes with these environment variables, in the order of their start."""
        wanted = {f"{name}={value}".encode() for name, value in {MARK: self.mark, **variables}.items()}
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                ours = wanted <= set((folder / "environ").read_bytes().split(b"\0"))
                after_name = (folder / "stat").read_text().rpartition(")")[2].split()
            except (OSError, ProcessLookupError):
                continue
            if ours and after_name[0] != "Z":
                found.append((int(after_name[19]), int(folder.name)))
        return [process for _, process in sorted(found)]

    def wait_for(self, file: Path, seconds: float = ENOUGH) -> None:
        """Wait until a file exists."""
        end = time.monotonic() + seconds
        while not file.exists():
            assert time.monotonic() < end, f"{file} was not written: {self.stacks()}"
            assert any(process.poll() is None for process in self.started), self.said()[-3000:]
            time.sleep(0.05)

    def left_after(self, seconds: float) -> list[int]:
        """The processes that still exist after this time."""
        end = time.monotonic() + seconds
        while (left := self.alive()) and time.monotonic() < end:
            time.sleep(0.1)
        return left


class FailsAtTheEnd(pl.Callback):
    """Ends every process except the first with exit status 3, after the last step."""

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.global_rank:
            os._exit(3)


class FailsWhileTheFirstWaits(pl.Callback):
    """Ends every process except the first with exit status 3, while the first sleeps and cannot notice."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_rank:
            os._exit(3)
        time.sleep(600)


class IsStoppedWhileTheFirstWaits(pl.Callback):
    """Acts like a signal to all processes that the first, blocked in a library, does not handle."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_rank:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(600)


class SpareModule(MethodModule):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(2))


class Spare(Method):
    """A method with a parameter that no loss reaches."""

    name = "spare"

    def build(self, backbone: Backbone) -> SpareModule:
        return SpareModule()
