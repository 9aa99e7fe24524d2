"""Private names of Lightning."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.strategies import DDPStrategy
    from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

    ScriptLauncher: TypeAlias = _SubprocessScriptLauncher

INSTANTIATOR_KEY = "_instantiator"
"""Key of a checkpoint's hyper-parameters that names the function which builds the module from them.

Missing: a public name for the key, or a hook by which a module class says how it is built from its hyper-parameters.
"""


class TakesSavedSettings:
    """Mixin for a LightningCLI that takes the model settings of a checkpoint itself.

    Missing: a public hook that decides which settings of `--ckpt_path` enter the config. Lightning loads the whole
    checkpoint for them, weights and optimizer included.
    """

    def take_saved_settings(self) -> None:
        """Put the settings of the checkpoint into `self.config`, after parsing and before anything is built."""
        raise NotImplementedError

    def _parse_ckpt_path(self) -> None:
        self.take_saved_settings()


def no_signal_handlers(trainer: pl.Trainer) -> None:
    """Keep Lightning from handling signals.

    Missing: a Trainer option that leaves signals alone. Its handlers talk to other processes and write checkpoints
    wherever the signal happens to arrive, and each step waits for a broadcast of what rank 0 has received.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def dump_checkpoint(trainer: pl.Trainer) -> dict[str, Any]:
    """The contents of a full checkpoint of the run, not yet written. Every process must call this.

    Missing: a public way to get the dictionary; `Trainer.save_checkpoint` writes it too, and one file at a time.
    """
    contents: dict[str, Any] = trainer._checkpoint_connector.dump_checkpoint(False)  # not the weights alone
    return contents


def is_accumulating(trainer: pl.Trainer) -> bool:
    """Whether gradients of the last batch wait for more batches before the optimizer step.

    Missing: a public property of the Trainer or of its epoch loop.
    """
    return trainer.fit_loop.epoch_loop._should_accumulate()


def is_epoch_over(trainer: pl.Trainer) -> bool:
    """Whether the batch that is being trained on is the last of its epoch.

    Missing: `Trainer.is_last_batch` does not count `limit_train_batches`.
    """
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def script_launcher(trainer: pl.Trainer) -> ScriptLauncher | None:
    """What starts the other processes of this machine for the trainer; None if nothing does.

    Its attributes `procs`, the list of processes, `launch` and `cluster_environment` are used too.

    Missing: a public class of the launcher, or a list of the processes that the strategy has started.
    """
    from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

    launcher = trainer.strategy.launcher
    return launcher if isinstance(launcher, _SubprocessScriptLauncher) else None


def ddp_timeout(strategy: DDPStrategy) -> timedelta | None:
    """How long a collective may take; None for torch's default.

    Missing: a public attribute for the argument `timeout`.
    """
    return strategy._timeout


def ddp_backend(strategy: DDPStrategy) -> str:
    """The backend of the process group that the strategy will make, such as `gloo`.

    Missing: `process_group_backend` is the option as it was given, None by default.
    """
    return strategy._get_process_group_backend()


def set_csv_writer(logger: CSVLogger, make: Callable[[], Any]) -> Any:
    """The writer of a CSVLogger, which `make` builds at the first call.

    Missing: an argument for the class of the writer; `save` and `finalize` look at the private attribute.
    """
    if logger._experiment is None:
        logger._experiment = make()
    return logger._experiment
