"""The processes of a run: how they may be arranged, that they find one another, and that all end when one does."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.constants import default_pg_timeout

from itr.data.loading.workers import SIGNALS
from itr.errors import UserError
from itr.runs.stopping import exit_status

STRATEGIES = ("auto", "single_device", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")
CLASSES = ("DDPStrategy", "SingleDeviceStrategy")
LAUNCHER = "ITR_LAUNCHER"  # which process starts the others, where Lightning does
GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")  # gloo's words
PATIENCE = 120.0  # seconds in which the other processes of a machine end after the first
LOOK = 5.0  # seconds from one look at them to the next
STOPS = {status for signum in SIGNALS for status in (-signum, exit_status(signum))}
NAMES = {known.value: known.name for known in signal.Signals}
_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def check_strategy(strategy: Any) -> None:
    """Refuse strategies that split the model, which nothing here has been shown to train right.

    Args:
        strategy: `--trainer.strategy`, a name or a class path with arguments, as parsed.

    Raises:
        UserError: it is neither one device nor DDP.
    """
    path = getattr(strategy, "class_path", None)
    name = str(path or strategy)
    if name.rpartition(".")[2] in CLASSES if path else name in STRATEGIES:
        return
    raise UserError(
        f"trainer.strategy is {name}; it must be {', '.join(STRATEGIES)}, or class DDPStrategy. FSDP, DeepSpeed and "
        "XLA split or move the model, and nothing shows yet that the loss over all processes, frozen teachers and "
        "checkpoints come through that unharmed. Where memory is short, take "
        "--model.backbone.gradient_checkpointing true, or --model.large_batch.gradient_cache for a large batch in "
        "small parts"
    )


def check_numbers(trainer: pl.Trainer) -> None:
    """Refuse to train as fewer or more processes than were started: each might be a run of its own, in one folder.

    Raises:
        UserError: torchrun or srun started another number of processes than the settings say.
    """
    started = os.environ.get("WORLD_SIZE" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM_STEP_NUM_TASKS")
    if started is not None and int(started) != trainer.world_size:
        raise UserError(
            f"{started} processes were started, and --trainer.num_nodes {trainer.num_nodes} with --trainer.devices "
            f"{trainer.num_devices} make {trainer.world_size}; set them to the number of machines and to that of "
            "processes on each (torchrun's --nnodes and --nproc_per_node, SLURM's --nodes and --ntasks-per-node)"
        )


def follow_launcher() -> None:
    """End at once when the process that started this one dies, so that none is left waiting for an answer.

    That is torchrun, or the first process where Lightning started the others. Linux does it; elsewhere the others end
    when a collective fails or its timeout is over.
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
    if os.getppid() != launcher:  # it died before it could be followed
        os.kill(os.getpid(), signal.SIGKILL)


def meet_anew(trainer: pl.Trainer) -> None:
    """Have processes that torchrun starts again meet under a name of their own.

    NOTE: torchrun keeps one store for all starts, in which gloo finds the addresses that a process of the last start
    had left there, and can't connect. With other names in it nothing is left over.
    """
    starts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0)
    strategy: Any = trainer.strategy
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not (starts and shared and isinstance(strategy, DDPStrategy)):
        return
    meet = strategy.setup_distributed

    def meet_under_another_name() -> None:
        timeout, device = strategy._timeout or default_pg_timeout, strategy.root_device
        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=timeout)
        dist.init_process_group(
            strategy._get_process_group_backend(),
            store=PrefixStore(f"start {starts}", store),
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
        )
        meet()  # finds the group there

    strategy.setup_distributed = meet_under_another_name  # type: ignore[method-assign]


def watch_processes(trainer: pl.Trainer) -> None:
    """Have this process end with status 1, and say why, when one fails that Lightning starts on this machine for it.

    NOTE: Lightning watches them too, but ends everything by SIGKILL, wherever this process stands: one that was about
    to say the reason did or did not, and its status was 1 or 137. Its thread shares the list of processes with the
    launcher, and rests once there is none in it.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
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


def _watch(launcher: _SubprocessScriptLauncher) -> None:
    """End this process one look after a failure was seen, so that it may say more and end by itself before."""
    failed = ""
    while any(process.poll() != 0 for process in launcher.procs):
        if failed:
            status = _status(launcher.procs)
            with suppress(OSError):  # no room, or nobody who listens
                os.write(2, f"\nitr: {'error: ' * (status == 1)}{failed}\n".encode())
            _kill(launcher.procs)
            os._exit(status)  # this process may wait in a driver for those that are gone
        failed = _failed(launcher.procs)
        time.sleep(LOOK)


def _status(started: Sequence[subprocess.Popen[bytes]]) -> int:
    """1, but where a signal has asked one to stop, that of a stop: this one may have got it and not come to hear it."""
    for process in started:
        if (status := process.poll() or 0) in STOPS:
            return exit_status(-status) if status < 0 else status
    return 1


def _kill(started: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in started:
        process.kill()


def wait_for_processes(trainer: pl.Trainer) -> None:
    """Wait for the processes that Lightning started on this machine; it forgets them, and how they ended.

    From here on nobody else watches them, so that a failure is told once.

    Raises:
        UserError: one failed or did not end, so the run failed, even though this process came to its end.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
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
    """Which of the processes ended with an error, in words; none: an empty text."""
    for rank, process in enumerate(started, 1):
        if (status := process.poll() or 0) > 0:
            return f"process {rank} of this machine ended with status {status}; what it said stands above"
        if status < 0:
            name = NAMES.get(-status, f"signal {-status}")
            hint = ", as happens where a machine's memory runs out" if name == "SIGKILL" else ""
            return f"process {rank} of this machine was ended by {name}{hint}"
    return ""


@contextmanager
def meeting() -> Iterator[None]:
    """Say in plain words that the processes of a run can't find one another, or that one of them is gone.

    Raises:
        UserError: the port is in use, no such host, or not all came; or a process no longer answers.
    """
    try:
        yield
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        place = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        raise UserError(
            f"the processes of this run can't meet at {place} (MASTER_ADDR:MASTER_PORT): {str(error).splitlines()[0]}. "
            "End what is left of an earlier run there or set another MASTER_PORT, and see that the first machine can "
            "be reached at that address from all others and that as many processes were started as the run expects"
        ) from error
    except RuntimeError as error:  # gloo's have no type of their own
        lost = isinstance(error, dist.DistBackendError) or any(words in str(error) for words in GONE)
        if not (lost and dist.is_initialized()):
            raise
        raise UserError(
            f"process {dist.get_rank()} of {dist.get_world_size()} ends, since another has ended or no longer answers: "
            f"what that one said tells why ({str(error).rpartition('] ')[2].splitlines()[0][:120]})"
        ) from error


class UnusedParameters(pl.Callback):
    """Names the parameters that no loss reaches, for which DDP would wait without end or fail without a name."""

    def __init__(self) -> None:
        self._checked = False

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Look once, at the first step of several processes."""
        if self._checked or trainer.world_size == 1:
            return
        self._checked = True
        unused = [name for name, value in pl_module.named_parameters() if value.requires_grad and value.grad is None]
        allowed: dict[str, Any] = getattr(trainer.strategy, "_ddp_kwargs", {})
        if unused and not allowed.get("find_unused_parameters"):
            raise UserError(
                f"no loss reaches {len(unused)} parameters, which several processes can't train together: "
                f"{', '.join(unused[:10])}{' ...' if len(unused) > 10 else ''}. Leave them out of the model, freeze "
                "them by requires_grad_(False), or give --trainer.strategy ddp_find_unused_parameters_true"
            )
