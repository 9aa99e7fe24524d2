"""fit, validate, test and predict: LightningCLI over the one module and the one data module."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from itr import backbones, methods, objectives  # noqa: F401  importing makes their classes selectable by name
from itr.callbacks import History, ProgressBar, Results, SaveConfig
from itr.component import plain
from itr.data.datamodule import ShardData
from itr.errors import UserError
from itr.module import RetrievalModule
from itr.parsing import FriendlyParser, resolve_configs
from itr.run_folder import check_writable

log = logging.getLogger(__name__)


class Parser(FriendlyParser, LightningArgumentParser):
    """Lightning's parser with our errors."""


class TrainingCLI(LightningCLI):
    """Puts a run's files below `--trainer.default_root_dir` and finds checkpoints there by name."""

    def __init__(self, arguments: list[str] | None = None, run: bool = True) -> None:
        super().__init__(
            RetrievalModule,
            ShardData,
            args=arguments,
            run=run,
            parser_class=Parser,
            parser_kwargs={"prog": "itr"} if run else {},
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            trainer_defaults={"default_root_dir": "runs/itr", "max_epochs": 30},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # RetrievalModule writes how to build it again itself
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One option of our own, and defaults that later options can refine (`--model.backbone.dim 256`)."""
        parser.set_defaults({"model.backbone": {"class_path": "VSE"}, "model.objective": {"class_path": "InfoNCE"}})
        parser.add_argument("--overwrite", type=bool, default=False, help="train into a folder that holds a run")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, then turn `--ckpt_path best|last` into a file of the run folder."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            super().parse_arguments(parser, args)
        subcommand = self.config.get("subcommand")
        if subcommand:
            settings = self.config[subcommand]
            settings.ckpt_path = find_checkpoint(settings, subcommand)
            if "verbose" in settings:
                settings.verbose = False  # `Results` shows the figures
            if settings.ckpt_path:
                check_checkpoint_settings(settings, subcommand, args or [])

    def instantiate_classes(self) -> None:
        """As Lightning does; settings that a component refuses or the machine lacks are for the user to mend."""
        try:
            super().instantiate_classes()
        except UserError:
            raise
        except (ValueError, MisconfigurationException) as error:
            raise UserError(str(error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add our loggers and callbacks, which need the run folder."""
        settings = self._get(self.config_init, "trainer")
        root = settings["default_root_dir"]
        settings["default_root_dir"] = str(root)
        training = self.subcommand == "fit"
        if training and not self.datamodule.splits["val"]:
            settings["limit_val_batches"] = 0
        if settings["logger"] in (None, True):
            settings["logger"] = self._loggers(root) if training else False
        own = [Results(), *self._progress_bar(settings), *([History(), *self._checkpoints(root)] if training else [])]
        settings["enable_checkpointing"] = training
        given = settings["callbacks"] or []
        settings["callbacks"] = [*(given if isinstance(given, list) else [given]), *own]
        return super().instantiate_trainer(**kwargs)

    @staticmethod
    def _loggers(root: Any) -> list[Logger]:
        tensorboard = TensorBoardLogger(root, "logs")
        return [CSVLogger(root, "logs", version=tensorboard.version), tensorboard]

    def _checkpoints(self, root: Any) -> list[Callback]:
        folder = os.path.abspath(os.path.join(root, "checkpoints"))
        last = ModelCheckpoint(folder, filename="last", save_top_k=1, enable_version_counter=False)
        if not self.datamodule.splits["val"]:
            return [last]
        best = ModelCheckpoint(
            folder, filename="best", monitor="val/rsum", mode="max", save_top_k=1, enable_version_counter=False
        )
        return [best, last]

    @staticmethod
    def _progress_bar(settings: Any) -> list[Callback]:
        if settings["enable_progress_bar"] is False:
            return []
        return [ProgressBar(refresh_rate=1 if sys.stderr.isatty() else 50)]

    def before_fit(self) -> None:
        """Never write over a run unasked."""
        settings = self.config["fit"]
        last = Path(settings.trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        if last.exists() and not settings.ckpt_path and not settings.overwrite:
            raise UserError(
                f"{settings.trainer.default_root_dir} already holds a run. Go on with it by --ckpt_path last, choose "
                "another folder by --trainer.default_root_dir, or give --overwrite true"
            )

        self._check_folder("checkpoints", "logs")

    def before_test(self) -> None:
        """Find out now whether the figures can be written, not when all is measured."""
        self._check_folder()

    def before_predict(self) -> None:
        """As `before_test`, for the embeddings."""
        self._check_folder()

    def _check_folder(self, *parts: str) -> None:
        if self.trainer.is_global_zero:
            root = Path(self.trainer.default_root_dir)
            for folder in (root, *(root / part for part in parts)):
                check_writable(folder, "--trainer.default_root_dir")

    def after_fit(self) -> None:
        """Say where things are."""
        if self.trainer.is_global_zero:
            root = self.trainer.default_root_dir
            print(f"\nthe run is in {root}: checkpoints/, config.yaml, logs/ (`tensorboard --logdir {root}`)")


def find_checkpoint(settings: Namespace, subcommand: str) -> str | None:
    """The file that `--ckpt_path` means: a path, or `best` or `last` of the run folder.

    Evaluation without the option takes the folder's best checkpoint where there is one, and says so.
    """
    folder = Path(settings.trainer.default_root_dir) / "checkpoints"
    wanted = settings.ckpt_path
    if wanted is None:
        best = folder / "best.ckpt"
        if subcommand == "fit":
            return None
        if not best.is_file():
            log.info("no --ckpt_path given and no %s: measuring the model as the config builds it", best)
            return None
        log.info("no --ckpt_path given: taking %s", best)
        return str(best)
    if "://" in str(wanted):
        raise UserError(f"checkpoint {wanted} is not a local file; download it first")
    path = folder / f"{wanted}.ckpt" if wanted in ("best", "last") else Path(wanted)
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in folder.glob("*.ckpt"))) or "none"
        raise UserError(f"there is no checkpoint {path} (in {folder}: {there})")
    return str(path)


def check_checkpoint_settings(settings: Namespace, subcommand: str, arguments: list[str]) -> None:
    """Model settings come from the checkpoint: refuse those of the command line, mention those of the config."""
    try:
        saved = torch.load(settings.ckpt_path, weights_only=True, map_location="cpu", mmap=True)["hyper_parameters"]
    except Exception as error:
        raise UserError(f"{settings.ckpt_path} can't be read as a checkpoint of itr: {error}") from None
    given = [a.partition("=")[0] for a in arguments if a.startswith("--model.") or a.startswith("--model=")]
    if given and subcommand != "fit":
        raise UserError(
            f"{', '.join(given)}: the model and its settings come from {settings.ckpt_path}; leave the option away"
        )
    if subcommand == "fit":
        for part in ("objective", "methods", "optimizer"):
            if plain(namespace_to_dict(settings.model.get(part))) != saved.get(part):
                log.info("model.%s is taken from %s, whose value differs from the config's", part, settings.ckpt_path)


def namespace_to_dict(value: Any) -> Any:
    """Namespaces inside `value` as dictionaries."""
    if isinstance(value, Namespace):
        return {key: namespace_to_dict(item) for key, item in vars(value).items()}
    if isinstance(value, (list, tuple)):
        return [namespace_to_dict(item) for item in value]
    return value


def quieten() -> None:
    """Leave out what Lightning says that is no news to anybody."""
    for message in (
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",  # Lightning on its own code
        ".*is smaller than the logging interval.*",
        ".*does not have many workers.*",
        ".*is not supported by the model summary.*",
        ".*predict returned None.*",  # the embeddings are in the module
        ".*It is recommended to use `self.log.*sync_dist=True.*",  # every process has the same figures
        "Checkpoint directory .* exists and is not empty.*",  # before_fit has asked about it
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*`IterableDataset` has `__len__` defined.*",  # our streams know their exact length
    ):
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: "pypi.org/project/lit" not in record.getMessage())


def main(arguments: list[str]) -> None:
    """Run one of Lightning's verbs."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    quieten()
    torch.set_float32_matmul_precision("high")
    TrainingCLI(resolve_configs(arguments))
