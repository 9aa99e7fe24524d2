"""Resuming a run: which checkpoint, which settings, and what starts from scratch if the run has changed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from itr.commands.inputs import check_one_start, checkpoint_names
from itr.commands.process import started_again
from itr.component import PARTS, check_description, plain
from itr.errors import UserError
from itr.files.archives import fault
from itr.runs.checkpoints.checkpoint_files import newest, read
from itr.runs.checkpoints.saved_settings import check_resumed
from itr.runs.checkpoints.settings import BEST, LAST
from itr.runs.run_folder import refuse_without_best
from itr.state.offline import sealed

log = logging.getLogger(__name__)


def find_checkpoint(settings: Namespace, subcommand: str, arguments: Sequence[str] = ()) -> str | None:
    """The file for `--ckpt_path`: a path; `best` or `last` of the run folder; or `auto`, which is `last` if it exists.

    A run that torchrun or SLURM restarts resumes from `last`, whatever it started from. Evaluation without the option
    uses the best checkpoint of the folder if there is one, and logs it. If `last` is damaged, the newest intact file
    is used instead.

    Raises:
        UserError: the file does not exist, or it is damaged.
    """
    folder = Path(settings.trainer.default_root_dir) / "checkpoints"
    wanted, training = settings.ckpt_path, subcommand == "fit"
    if training and settings.model.weights and wanted not in (None, "auto") and not started_again():
        check_one_start(str(wanted), [argument.partition("=")[0] for argument in arguments])
    if training and (wanted == "auto" or started_again()):
        there = any(folder.glob("*.ckpt"))
        wanted = LAST.removesuffix(".ckpt") if there else None if wanted == "auto" else wanted
    if wanted is None:
        return None if training else _best_if_there(folder)
    if "://" in str(wanted):
        raise UserError(f"checkpoint {wanted} is not a local file; download it first")
    path = folder / f"{wanted}.ckpt" if wanted in ("best", "last") else Path(wanted).expanduser()
    if wanted == "last" and training:
        return str(_intact_last(path))
    if not path.is_file():
        raise UserError(f"the checkpoint {path} does not exist (in {folder}: {checkpoint_names(folder)})")
    _refuse_damage(path)
    return str(path)


def _best_if_there(folder: Path) -> str | None:
    best = folder / BEST
    if not best.is_file():
        refuse_without_best(folder.parent)
        log.info("no --ckpt_path given and %s does not exist: measuring the model that the config builds", best)
        return None
    log.info("no --ckpt_path given: using %s", best)
    _refuse_damage(best)
    return str(best)


def check_trained(module: Any, ckpt_path: str | None) -> None:
    """Refuse to measure random weights.

    Raises:
        UserError: no checkpoint is given, and parts of the model are not pretrained either.
    """
    untrained = module.backbone.untrained
    if ckpt_path is None and untrained:
        raise UserError(
            "no checkpoint is given, and the model that the config builds has random weights "
            f"({', '.join(untrained)}): its metrics would mean "
            "nothing. Train it by `itr fit`, or give --ckpt_path or pretrained weights"
        )


def _refuse_damage(path: Path) -> None:
    why = fault(path)
    if why:
        beside = checkpoint_names(path.parent)
        raise UserError(f"could not read {path} as an itr checkpoint: it is damaged ({why}); in its folder: {beside}")


def _intact_last(path: Path) -> Path:
    why = fault(path) if path.is_file() else "it does not exist"
    if not why:
        return path
    found = newest(other for other in path.parent.glob("*.ckpt") if other != path)
    if found is None:
        state = f"checkpoint {path} is damaged ({why})" if path.is_file() else f"checkpoint {path} does not exist"
        raise UserError(f"{state}, and {path.parent} contains no other that is intact")
    other, step = found
    log.warning("could not use %s (%s): resuming from %s, the newest intact one, of step %d", path, why, other, step)
    return other


def check_settings(settings: Namespace, subcommand: str, arguments: list[str]) -> dict[str, Any]:
    """The model settings of the checkpoint: refuse different options, and report differences in a config."""
    saved = check_description(read(Path(settings.ckpt_path))["hyper_parameters"], settings.ckpt_path)
    given = [a.partition("=")[0] for a in arguments if a.startswith("--model.") or a.startswith("--model=")]
    if given and subcommand != "fit":
        raise UserError(
            f"{', '.join(given)}: the model and its settings come from {settings.ckpt_path}; remove the option"
        )
    if subcommand == "fit":
        check_resumed(plain(namespace_to_dict(settings.model)), saved, arguments, settings.ckpt_path)
    return saved


def with_saved(parser: ArgumentParser, config: Namespace, saved: dict[str, Any]) -> Namespace:
    """The config of a verb with the model settings `saved` in its checkpoint.

    Raises:
        UserError: they are not the settings of one of our models.
    """
    verb = config.subcommand
    model = {**{part: deepcopy(saved[part]) for part in PARTS}, "weights": None}
    try:
        with sealed(saved):
            parsed: Namespace = parser.parse_object({verb: {"model": model}}, config)
    except SystemExit:
        path = config[verb].ckpt_path
        raise UserError(f"{path} is not an itr checkpoint: its settings are not those of a model") from None
    return parsed


def namespace_to_dict(value: Any) -> Any:
    """Namespaces inside `value` as dictionaries."""
    if isinstance(value, Namespace):
        return {key: namespace_to_dict(item) for key, item in vars(value).items()}
    if isinstance(value, (list, tuple)):
        return [namespace_to_dict(item) for item in value]
    return value


class SameOrder(pl.Callback):
    """Restarts an epoch if its batches would no longer be those that the checkpoint has counted.

    The order of an epoch depends on the number of processes and workers, on batch size, seed and data. If one of them
    has changed, the number of batches does not determine which pairs the run has seen.
    """

    def __init__(self) -> None:
        self._saved: dict[str, Any] = {}

    @staticmethod
    def _order(trainer: pl.Trainer) -> dict[str, Any]:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        order: dict[str, Any] = data.order()
        return order

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store what the order depends on."""
        checkpoint["order"] = self._order(trainer)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep it until training starts."""
        self._saved = checkpoint.get("order", {})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report what has changed, and correct the counts of the epoch."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradientAccumulationScheduler):
                callback.on_train_epoch_start(trainer)  # Lightning omits this when an epoch is resumed
        now = self._order(trainer)
        changed = [f"{name} {was} -> {now.get(name)}" for name, was in self._saved.items() if was != now.get(name)]
        self._saved = {}
        if not changed:
            return
        loop: Any = trainer.fit_loop.epoch_loop
        unfinished = loop.batch_progress.current.processed and not loop.batch_progress.is_last_batch
        log.warning(
            "the run differs from that of the checkpoint (%s): weights, optimizer and step continue, the learning "
            "rate follows the new number of steps%s",
            ", ".join(changed),
            f", and epoch {trainer.current_epoch + 1} starts again" if unfinished else "",
        )
        if unfinished:
            _count(loop.batch_progress, 0)
            loop.reset_restart_stage()
        elif loop.batch_progress.is_last_batch:
            _count(loop.batch_progress, int(trainer.num_training_batches))


def _count(progress: Any, batches: int) -> None:
    """Set the number of batches of the epoch that are done."""
    current = progress.current
    current.ready = current.started = current.processed = current.completed = batches
