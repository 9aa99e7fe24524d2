"""fit, validate, test and predict: LightningCLI over the one module and the one data module."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from itr import backbones, methods, objectives  # noqa: F401  importing makes their classes selectable by name
from itr.commands.configs import resolve_configs
from itr.commands.parsing import FriendlyParser
from itr.commands.quieten import quieten
from itr.data.datamodule import ShardData
from itr.errors import UserError
from itr.module import RetrievalModule
from itr.private_api.lightning import TakesSavedSettings, no_signal_handlers
from itr.runs.callbacks import History, Results, SaveConfig
from itr.runs.checkpoints.checkpointing import Checkpoints
from itr.runs.checkpoints.outcome import outcome
from itr.runs.checkpoints.resume import SameOrder, check_settings, check_trained, find_checkpoint, with_saved
from itr.runs.checkpoints.settings import CheckpointSettings
from itr.runs.loggers import Csv, TensorBoard, survive_full_disk
from itr.runs.processes import follow_launcher, wait_for_processes, watch_processes
from itr.runs.rendezvous import UnusedParameters, check_numbers, check_strategy, meeting, use_fresh_rendezvous
from itr.runs.run_folder import RUN_FOLDER, FolderLock, check_folders, check_new_run
from itr.runs.stopping import Signals, Stopped, requeue
from itr.runs.trainer_options import (
    check_options,
    check_trainer,
    is_refusal,
    progress_bars,
    saves_checkpoints,
    writes_nothing,
)
from itr.runs.waiting import DataWait, Stalls
from itr.runs.watch import Watch
from itr.state.offline import sealed

DEFAULT_CLASSES = {"backbone": "VSE", "objective": "InfoNCE"}
log = logging.getLogger(__name__)


class Parser(FriendlyParser, LightningArgumentParser):
    """Lightning's parser with our errors."""


class TrainingCLI(TakesSavedSettings, LightningCLI):
    """Puts a run's files below `--trainer.default_root_dir` and finds checkpoints there by name."""

    def __init__(
        self,
        arguments: list[str] | None = None,
        run: bool = True,
        signals: Signals | None = None,
        lock: FolderLock | None = None,
    ) -> None:
        self.signals, self.lock = signals or Signals(), lock or FolderLock()
        self.saved: dict[str, Any] | None = None  # the model settings of the checkpoint
        self.parsers: list[LightningArgumentParser] = []  # one for each verb
        super().__init__(
            RetrievalModule,
            ShardData,
            args=arguments,
            run=run,
            parser_class=Parser,
            parser_kwargs={"prog": "itr"} if run else {},
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            trainer_defaults={"default_root_dir": RUN_FOLDER, "max_epochs": 30},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # RetrievalModule describes itself
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add our own options, and defaults that later options can refine (`--model.backbone.dim 256`)."""
        self.parsers.append(parser)
        parser.set_defaults({f"model.{part}": {"class_path": name} for part, name in DEFAULT_CLASSES.items()})
        parser.add_class_arguments(CheckpointSettings, "checkpoint")
        parser.add_argument("--overwrite", type=bool, default=False, help="train into a folder that holds a run")
        parser.add_lightning_class_args(Watch, "watch")  # which also adds the callback to the trainer

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, then resolve `--ckpt_path best|last` to a file of the run folder."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            asked = [a for a in args or [] if not a.startswith("--print_config")]  # which would print and exit
            super().parse_arguments(parser, asked)
            if self._default_to_chosen_classes() or len(asked) < len(args or []):
                super().parse_arguments(parser, args)
        subcommand = self.config.get("subcommand")
        check_strategy((self.config[subcommand] if subcommand else self.config).trainer.strategy)
        if subcommand:
            settings = self.config[subcommand]
            root = settings.trainer.default_root_dir or RUN_FOLDER
            settings.trainer.default_root_dir = str(Path(root).expanduser())  # Lightning does so in some places only
            settings.ckpt_path = find_checkpoint(settings, subcommand, args or [])
            settings.weights_only = True  # whatever the option or torch's environment variables say
            if "verbose" in settings:
                settings.verbose = False  # `Results` shows the figures
            if settings.ckpt_path:
                self.saved = check_settings(settings, subcommand, args or [])

    def take_saved_settings(self) -> None:
        """Put the model settings of the checkpoint into the config."""
        if self.saved is not None:
            self.config = with_saved(self.parser, self.config, self.saved)

    def _default_to_chosen_classes(self) -> bool:
        """Give options that are not set the defaults of the chosen class; whether that changes anything.

        When the class changes, the parser keeps settings that the new one has too: Sigmoid would start with the
        temperature that is InfoNCE's default.
        """
        verb = self.config.get("subcommand")
        model = (self.config[verb] if verb else self.config).model
        chosen = {part: model[part].class_path for part in DEFAULT_CLASSES}
        if all(path.endswith(f".{DEFAULT_CLASSES[part]}") for part, path in chosen.items()):
            return False
        for parser in self.parsers:
            parser.set_defaults({f"model.{part}": {"class_path": path} for part, path in chosen.items()})
        return True

    def instantiate_classes(self) -> None:
        """As Lightning does; report settings that a component refuses or that the machine does not support."""
        try:
            with nullcontext() if self.saved is None else sealed(self.saved):
                super().instantiate_classes()
        except UserError:
            raise
        except (ValueError, MisconfigurationException) as error:
            raise UserError(str(error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add our loggers and callbacks, which need the run folder."""
        options = self.config_init[self.subcommand] if self.subcommand else self.config_init
        settings = options["trainer"]
        root = settings["default_root_dir"]
        settings["default_root_dir"] = str(root)
        training = self.subcommand == "fit"
        check_options(settings, training)
        if training and not self.datamodule.splits["val"]:
            settings["limit_val_batches"] = 0
        if settings["logger"] in (None, True):
            settings["logger"] = self._loggers(root) if training and not writes_nothing(settings) else False
        own: list[Callback] = [Results(options.get("ckpt_path")), *progress_bars(settings)]
        if training:
            own += [History(), DataWait(), Stalls(), UnusedParameters(), SameOrder()]
        settings["enable_checkpointing"] = self.saves = training and saves_checkpoints(settings)
        if self.saves:
            folder = Path(os.path.abspath(root)) / "checkpoints"
            own.append(Checkpoints(folder, options["checkpoint"], self.signals, fresh=not options["ckpt_path"]))
        given = settings["callbacks"] or []
        settings["callbacks"] = [*(given if isinstance(given, list) else [given]), *own]
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except TypeError as error:  # Lightning's, for an impossible number of devices
            raise UserError(str(error)) from error
        no_signal_handlers(trainer)  # `Checkpoints` stops the run at the end of a step, for a signal to any rank
        check_numbers(trainer)
        check_trainer(trainer)
        use_fresh_rendezvous(trainer)
        watch_processes(trainer)
        return trainer

    @staticmethod
    def _loggers(root: Any) -> list[Logger]:
        tensorboard = TensorBoard(root, "logs")
        return [Csv(root, "logs", version=tensorboard.version), tensorboard]

    def before_fit(self) -> None:
        """Hold the run folder, and never overwrite a run without `--overwrite`."""
        settings, trainer = self.config["fit"], self.trainer
        root = Path(trainer.default_root_dir)
        if writes_nothing(settings.trainer):
            return
        if trainer.is_global_zero:
            self.lock.hold(root)
        check_new_run(root, bool(settings.ckpt_path), settings.overwrite, self.saves)
        if trainer.is_global_zero:
            check_folders(root, "checkpoints", "logs")

    def before_validate(self) -> None:
        """Check that there is something to measure."""
        self._check_evaluation()

    def before_test(self) -> None:
        """Check that there is something to measure, and that the metrics can be written, before anything is read."""
        self._check_evaluation()

    def before_predict(self) -> None:
        """Check that the embeddings can be written before anything is embedded."""
        self._check_evaluation()

    def _check_evaluation(self) -> None:
        settings = self.config[self.subcommand]
        if self.trainer.is_global_zero and self.subcommand != "validate" and not writes_nothing(settings.trainer):
            check_folders(Path(self.trainer.default_root_dir))
        check_trained(self.model, settings.ckpt_path)

    def after_fit(self) -> None:
        """Print where the results are.

        Raises:
            UserError: what was trained is not on disk.
        """
        if self.trainer.is_global_zero:
            print(f"\n{outcome(self.trainer)}")


def main(arguments: list[str]) -> int:
    """Run one of Lightning's verbs and return the exit status."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    quieten()
    follow_launcher()
    torch.set_float32_matmul_precision("high")
    signals, lock = Signals(), FolderLock()
    signals.listen()
    if arguments[0] == "fit":
        survive_full_disk()
    try:
        with meeting():
            cli = TrainingCLI(resolve_configs(arguments), signals=signals, lock=lock)
        wait_for_processes(cli.trainer)
    except (MisconfigurationException, ValueError, RuntimeError, ModuleNotFoundError) as error:
        if isinstance(error, UserError) or not is_refusal(error):
            raise
        raise UserError(" ".join(str(error).split())) from error
    except Stopped as stop:
        if getattr(rank_zero_only, "rank", 0) == 0:
            print(f"\nitr: {stop}", file=sys.stderr)  # on its own line, below the progress bar
            if signal.Signals(stop.signum).name == "SIGUSR1":
                requeue()
        return stop.status
    finally:
        lock.release()
        signals.release()
    return 0
