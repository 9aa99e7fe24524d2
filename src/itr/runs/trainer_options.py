"""Options of Lightning's Trainer that this project sets, or that would not do here what they promise."""

from __future__ import annotations

import sys
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
    TQDMProgressBar,
)
from lightning.pytorch.callbacks import ProgressBar as AnyProgressBar

from itr.errors import UserError
from itr.runs.watch import Watch

REFUSED_CALLBACKS = {
    StochasticWeightAveraging: (
        "puts its averages into the model after the last checkpoint is written, and a stopped run does not resume "
        "exactly; use --trainer.callbacks+=EMAWeightAveraging or WeightAveraging"
    ),
    BatchSizeFinder: (
        "trains some steps for each size and then changes the number of negatives, which is a setting of the "
        "objective; set --data.batch_size, with --model.large_batch.gradient_cache for one that does not fit"
    ),
    LearningRateFinder: (
        "sets one rate for all parameters, but towers and heads have rates of their own here; set --model.optimizer.lr"
    ),
    BaseFinetuning: (
        "gives parameters to the optimizer later, with rates that --model.optimizer and its schedule do not know; set "
        "--model.backbone.freeze_vision, freeze_text, or --model.optimizer.tower_lr_factor"
    ),
    ModelPruning: "renames the weights, so that no command could open the checkpoints; prune the model after training",
}


def writes_nothing(settings: Any) -> bool:
    """Whether `--trainer.fast_dev_run` asks for a trial that leaves no file behind and changes none."""
    return bool(settings["fast_dev_run"])


def saves_checkpoints(settings: Any) -> bool:
    """Whether a training run with these options of the Trainer writes checkpoints."""
    return not writes_nothing(settings) and settings["enable_checkpointing"] is not False


def check_options(settings: Any, training: bool) -> None:
    """Refuse values that Lightning would take and then ignore, or fail on later.

    Args:
        settings: the options of the Trainer.
        training: whether the verb is `fit`.

    Raises:
        UserError: naming the option.
    """
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if training and settings[name] == 0:
            raise UserError(f"trainer.{name} is 0: nothing would be trained")
    for name in ("val_check_interval", "check_val_every_n_epoch"):
        given = settings[name]
        if training and isinstance(given, (int, float)) and given <= 0:
            raise UserError(
                f"trainer.{name} is {given}; give more than 0. To train without validation, use "
                "--trainer.limit_val_batches 0"
            )
    for least, most in (("min_epochs", "max_epochs"), ("min_steps", "max_steps")):
        if training and settings[most] not in (None, -1) and (settings[least] or 0) > settings[most]:
            raise UserError(f"trainer.{least} is {settings[least]}, and trainer.{most} is {settings[most]}: raise it")
    if settings["reload_dataloaders_every_n_epochs"] < 0:
        raise UserError(
            "trainer.reload_dataloaders_every_n_epochs is negative; give a number of epochs, or 0 for never"
        )
    if settings["accumulate_grad_batches"] < 1:
        raise UserError(f"trainer.accumulate_grad_batches is {settings['accumulate_grad_batches']}; give 1 or more")
    if (settings["gradient_clip_val"] or 0) < 0:
        raise UserError(f"trainer.gradient_clip_val is {settings['gradient_clip_val']}; give a norm, or 0 for none")
    if settings["barebones"]:
        raise UserError(
            "trainer.barebones switches off what a run is watched and measured by: metrics, checkpoints, the check for "
            "a loss that is not finite; remove the option. For a trial that writes nothing, use --trainer.fast_dev_run"
        )


def is_refusal(error: Exception) -> bool:
    """Whether Lightning itself has raised an error: about settings that it finds impossible once a run begins."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and str(place.tb_frame.f_globals.get("__name__")).startswith("lightning.")


def check_trainer(trainer: pl.Trainer) -> None:
    """Refuse callbacks and plugins whose effect no checkpoint would contain, or which nothing would use.

    Raises:
        UserError: naming the class.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for refused, reason in REFUSED_CALLBACKS.items():
            if isinstance(callback, refused):
                raise UserError(f"{type(callback).__name__} {reason}")
    plugin = trainer.strategy.checkpoint_io
    if type(plugin) is not TorchCheckpointIO:
        raise UserError(
            f"the plugin {type(plugin).__name__} would not be used: a run writes its own checkpoints, each completely "
            "or not at all; remove it from --trainer.plugins"
        )


class ProgressBar(TQDMProgressBar):
    """Lightning's bar without the number of the log folder, and with the newest loss that has reached the CPU.

    NOTE: for values logged with `prog_bar=True`, Lightning waits for the device after each step, even without a bar.
    """

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
        """The metrics beside the bar."""
        figures = super().get_metrics(trainer, pl_module)
        figures.pop("v_num", None)
        watches = [callback for callback in trainer.callbacks if isinstance(callback, Watch)]  # type: ignore[attr-defined]
        loss = watches[0].loss if watches else None
        return figures if loss is None else {**figures, "train/loss": loss}


def progress_bars(settings: Any) -> list[pl.Callback]:
    """Our bar, unless the user has another; by default none without a terminal, where it would fill a log file.

    Args:
        settings: the options of the Trainer, changed so that Lightning adds no bar either.
    """
    given = settings["callbacks"] or []
    given = given if isinstance(given, list) else [given]
    if any(isinstance(callback, AnyProgressBar) for callback in given):
        return []
    if settings["enable_progress_bar"] is None:
        settings["enable_progress_bar"] = sys.stderr.isatty()
    if not settings["enable_progress_bar"]:
        return []
    return [ProgressBar(refresh_rate=1 if sys.stderr.isatty() else 50)]
