"""How the processes of a run may be arranged, and how they find one another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.constants import default_pg_timeout

from itr.errors import UserError
from itr.private_api.lightning import ddp_backend, ddp_timeout

STRATEGIES = ("auto", "single_device", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")
CLASSES = ("DDPStrategy", "SingleDeviceStrategy")
# How gloo words its errors, which have no type of their own.
GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")


def check_strategy(strategy: Any) -> None:
    """Refuse strategies that split the model: no test shows yet that they train it correctly.

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
        "XLA split or move the model, and no test shows yet that the loss over all processes, frozen teachers and "
        "checkpoints survive that. To save memory, use "
        "--model.backbone.gradient_checkpointing true, or --model.large_batch.gradient_cache for a large batch in "
        "small parts"
    )


def check_numbers(trainer: pl.Trainer) -> None:
    """Refuse to train with fewer or more processes than were started: several runs might share one folder.

    Raises:
        UserError: torchrun or srun started a different number of processes.
    """
    started = os.environ.get("WORLD_SIZE" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM_STEP_NUM_TASKS")
    if started is not None and int(started) != trainer.world_size:
        raise UserError(
            f"{started} processes were started, but --trainer.num_nodes {trainer.num_nodes} with --trainer.devices "
            f"{trainer.num_devices} make {trainer.world_size}; set them to the number of machines and of processes on "
            "each machine (torchrun's --nnodes and --nproc_per_node, SLURM's --nodes and --ntasks-per-node)"
        )


def use_fresh_rendezvous(trainer: pl.Trainer) -> None:
    """Let processes that torchrun has restarted meet under names that no earlier start has used.

    NOTE: torchrun keeps one store for all starts. In it gloo finds addresses that a process of the last start has left
    behind, and cannot connect to them.
    """
    starts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0)
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not (starts and shared and isinstance(trainer.strategy, DDPStrategy)):
        return
    strategy = trainer.strategy
    meet = strategy.setup_distributed

    def meet_under_new_names() -> None:
        timeout, device = ddp_timeout(strategy) or default_pg_timeout, strategy.root_device
        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=timeout)
        dist.init_process_group(
            ddp_backend(strategy),
            store=PrefixStore(f"start {starts}", store),
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
        )
        meet()  # uses the group made above

    strategy.setup_distributed = meet_under_new_names  # type: ignore[method-assign]


@contextmanager
def meeting() -> Iterator[None]:
    """Report in plain words that the processes of a run cannot find one another, or that one of them is gone.

    Raises:
        UserError: the port is in use, the host is unknown, or some did not come; or a process no longer answers.
    """
    try:
        yield
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        place = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        raise UserError(
            f"the processes of this run can't meet at {place} (MASTER_ADDR:MASTER_PORT): {str(error).splitlines()[0]}. "
            "End what is left of an earlier run there or set another MASTER_PORT. Check that all machines can reach "
            "the first at that address, and that as many processes were started as the run expects"
        ) from error
    except RuntimeError as error:
        lost = isinstance(error, dist.DistBackendError) or any(words in str(error) for words in GONE)
        if not (lost and dist.is_initialized()):
            raise
        raise UserError(
            f"process {dist.get_rank()} of {dist.get_world_size()} ends, since another has ended or no longer answers; "
            f"see the message of that one for the reason ({str(error).rpartition('] ')[2].splitlines()[0][:120]})"
        ) from error


class UnusedParameters(pl.Callback):
    """Reports the parameters that no loss reaches: DDP would wait for them forever, or fail without naming them."""

    def __init__(self) -> None:
        self._checked = False

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Check once, at the first step, if there are several processes."""
        if self._checked or trainer.world_size == 1:
            return
        self._checked = True
        unused = [name for name, value in pl_module.named_parameters() if value.requires_grad and value.grad is None]
        if unused and not getattr(trainer.strategy.model, "find_unused_parameters", False):
            raise UserError(
                f"no loss reaches {len(unused)} parameters, which several processes can't train together: "
                f"{', '.join(unused[:10])}{' ...' if len(unused) > 10 else ''}. Remove them from the model, freeze "
                "them by requires_grad_(False), or use --trainer.strategy ddp_find_unused_parameters_true"
            )
