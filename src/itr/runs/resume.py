"""Going on with a run: which file, what it says, and what starts anew where the run is no longer the same."""

from __future__ import annotations

import logging
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging

from itr.component import PARTS, check_description, plain
from itr.errors import UserError
from itr.runs.checkpoint_files import BEST, LAST, fault, newest, read
from itr.runs.saved_settings import check_resumed
from itr.state.offline import sealed

log = logging.getLogger(__name__)


def find_checkpoint(settings: Namespace, subcommand: str) -> str | None:
    """The file that `--ckpt_path` means: a path; `best` or `last` of the run folder; or `auto`, `last` if there is one.

    A run that torchrun or SLURM starts again goes on from `last`, whatever it began with. Evaluation without the option
    takes the folder's best checkpoint where there is one, and says so. A `last` that is damaged gives way to the newest
    file that is whole.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    folder = Path(settings.trainer.default_root_dir) / "checkpoints"
    wanted, training = settings.ckpt_path, subcommand == "fit"
    if training and (wanted == "auto" or started_again()):
        there = any(folder.glob("*.ckpt"))
        wanted = LAST.removesuffix(".ckpt") if there else None if wanted == "auto" else wanted
    if wanted is None:
        return None if training else _best_if_there(folder)
    if "://" in str(wanted):
        raise UserError(f"checkpoint {wanted} is not a local file; download it first")
    path = folder / f"{wanted}.ckpt" if wanted in ("best", "last") else Path(wanted).expanduser()
    if wanted == "last" and training:
        return str(_whole_last(path))
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path} (in {folder}: {_names(folder)})")
    _refuse_damage(path)
    return str(path)


def started_again() -> bool:
    """Whether torchrun or SLURM has started this command before."""
    return any(int(os.environ.get(name) or 0) > 0 for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def _best_if_there(folder: Path) -> str | None:
    best = folder / BEST
    if not best.is_file():
        log.info("no --ckpt_path given and no %s: measuring the model as the config builds it", best)
        return None
    log.info("no --ckpt_path given: taking %s", best)
    _refuse_damage(best)
    return str(best)


def _names(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.glob("*.ckpt"))) or "none"


def _refuse_damage(path: Path) -> None:
    why = fault(path)
    if why:
        beside = _names(path.parent)
        raise UserError(f"{path} can't be read as a checkpoint of itr: it is damaged ({why}); in its folder: {beside}")


def _whole_last(path: Path) -> Path:
    why = fault(path) if path.is_file() else "there is no such file"
    if not why:
        return path
    found = newest(other for other in path.parent.glob("*.ckpt") if other != path)
    if found is None:
        state = f"checkpoint {path} is damaged ({why})" if path.is_file() else f"there is no checkpoint {path}"
        raise UserError(f"{state}, and {path.parent} holds no other that is whole")
    other, step = found
    log.warning("%s can't be used (%s): going on from %s, the newest that is whole, of step %d", path, why, other, step)
    return other


def check_settings(settings: Namespace, subcommand: str, arguments: list[str]) -> dict[str, Any]:
    """The model settings of the checkpoint, which hold: refuse others of the command line, mention the config's."""
    saved = check_description(read(Path(settings.ckpt_path))["hyper_parameters"], settings.ckpt_path)
    given = [a.partition("=")[0] for a in arguments if a.startswith("--model.") or a.startswith("--model=")]
    if given and subcommand != "fit":
        raise UserError(
            f"{', '.join(given)}: the model and its settings come from {settings.ckpt_path}; leave the option away"
        )
    if subcommand == "fit":
        check_resumed(plain(namespace_to_dict(settings.model)), saved, arguments, settings.ckpt_path)
    return saved


def with_saved(parser: ArgumentParser, config: Namespace, saved: dict[str, Any]) -> Namespace:
    """A verb's config with the model settings of its checkpoint, `saved`.

    Raises:
        UserError: they are none of ours.
    """
    verb = config.subcommand
    model = {part: deepcopy(saved[part]) for part in PARTS}
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


def refuse_swa(trainer: pl.Trainer) -> None:
    """Refuse averages that no checkpoint holds.

    Raises:
        UserError: the trainer is to average so.
    """
    if any(isinstance(callback, StochasticWeightAveraging) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise UserError(
            "StochasticWeightAveraging puts its averages into the model after the last checkpoint is written, and a "
            "run that is stopped does not go on as it was; take --trainer.callbacks+=EMAWeightAveraging, or "
            "WeightAveraging"
        )


class SameOrder(pl.Callback):
    """Begins an epoch anew where its batches would no longer be those that the checkpoint has counted.

    The order of an epoch depends on the number of processes and workers, on batch size, seed and data. Where one of
    them has changed, a number of batches says nothing of which pairs have been seen.
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
        """Keep what the order depends on."""
        checkpoint["order"] = self._order(trainer)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember it until training begins."""
        self._saved = checkpoint.get("order", {})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what has changed, and put the epoch's counts in order."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradientAccumulationScheduler):
                callback.on_train_epoch_start(trainer)  # Lightning leaves it out where an epoch goes on
        now = self._order(trainer)
        changed = [f"{name} {was} -> {now.get(name)}" for name, was in self._saved.items() if was != now.get(name)]
        self._saved = {}
        if not changed:
            return
        loop: Any = trainer.fit_loop.epoch_loop
        unfinished = loop.batch_progress.current.processed and not loop.batch_progress.is_last_batch
        log.warning(
            "not the run that the checkpoint is of (%s): weights, optimizer and step go on, the learning rate follows "
            "the new number of steps%s",
            ", ".join(changed),
            f", and epoch {trainer.current_epoch + 1} begins anew" if unfinished else "",
        )
        if unfinished:
            _count(loop.batch_progress, 0)
            loop.reset_restart_stage()
        elif loop.batch_progress.is_last_batch:
            _count(loop.batch_progress, int(trainer.num_training_batches))


def _count(progress: Any, batches: int) -> None:
    """Let so many batches of the epoch have been made."""
    current = progress.current
    current.ready = current.started = current.processed = current.completed = batches
