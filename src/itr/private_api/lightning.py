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

Missing: a public name for the key, or a hook with which a module class defines how it is built from them.
"""


class TakesSavedSettings:
    """Mixin for a LightningCLI that takes the model settings of a checkpoint itself.

    Missing: a public hook that chooses which settings of `--ckpt_path` enter the config. Lightning loads the whole
    checkpoint for them, weights and optimizer included.
    """

    def take_saved_settings(self) -> None:
        """Put the settings of the checkpoint into `self.config`, after parsing and before anything is built."""
        raise NotImplementedError

    def _parse_ckpt_path(self) -> None:
        self.take_saved_settings()


def no_signal_handlers(trainer: pl.Trainer) -> None:
    """Keep Lightning from handling signals.

    Missing: a Trainer option that disables them. Its handlers communicate with other processes and write checkpoints
    at whatever point the signal arrives, and every step waits for a broadcast of what rank 0 has received.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def dump_checkpoint(trainer: pl.Trainer) -> dict[str, Any]:
    """The contents of a full checkpoint of the run, not yet written. Every process must call this.

    Missing: a public way to get the dictionary; `Trainer.save_checkpoint` also writes it, to a single file.
    """
    contents: dict[str, Any] = trainer._checkpoint_connector.dump_checkpoint(False)  # not only the weights
    return contents


def is_accumulating(trainer: pl.Trainer) -> bool:
    """Whether the gradients are still being accumulated, so that no optimizer step follows the last batch.

    Missing: a public property of the Trainer or of its epoch loop.
    """
    return trainer.fit_loop.epoch_loop._should_accumulate()


def is_epoch_over(trainer: pl.Trainer) -> bool:
    """Whether the current batch is the last of its epoch.

    Missing: `Trainer.is_last_batch` does not count `limit_train_batches`.
    """
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def script_launcher(trainer: pl.Trainer) -> ScriptLauncher | None:
    """The launcher that starts the other processes on this machine for the trainer; None without one.

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
    """The backend of the process group that the strategy will create, such as `gloo`.

    Missing: `process_group_backend` is only the option, None by default.
    """
    return strategy._get_process_group_backend()


def set_csv_writer(logger: CSVLogger, make: Callable[[], Any]) -> Any:
    """The writer of a CSVLogger, built with `make` at the first call.

    Missing: an argument for the class of the writer; `save` and `finalize` use the private attribute.
    """
    if logger._experiment is None:
        logger._experiment = make()
    return logger._experiment
