"""What a run writes besides checkpoints and logs."""

from __future__ import annotations

import logging
import math
import os
from enum import Enum
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

from itr.commands.configs import MADE_WITH, made_with
from itr.embedding.lengths import with_lengths
from itr.errors import UserError
from itr.evaluation.provenance import (
    about,
    checkpoint_identity,
    measured,
    measured_notes,
    shortened,
    write_figures,
)
from itr.evaluation.retrieval import DIRECTIONS, recall_table
from itr.evaluation.scoring import mean_scores
from itr.files.states import FileState
from itr.files.writing import whole_file
from itr.module import RetrievalModule
from itr.training.logging_steps import logs_now
from itr.training.optim import loss_scale

log = logging.getLogger(__name__)
PROTOCOL = (
    "every image of the split against every caption of it; any caption of an image is a hit; "
    "samples with equal images are one image; R@K and mrr in percent, "
    "ranks from 1; ties count against the true match; all/ counts every true match that the shards know"
)


def without_enums(value: Any) -> Any:
    """A config whose enumerations, such as those of Lightning's Timer, are replaced by what YAML can store."""
    if isinstance(value, Namespace):
        plain: Any = Namespace
        return plain(**{key: without_enums(item) for key, item in vars(value).items()})
    if isinstance(value, (list, tuple)):
        return [without_enums(item) for item in value]
    return value.value if isinstance(value, Enum) else value


class SaveConfig(SaveConfigCallback):
    """Keeps the complete config of a training run as `config.yaml` in the run folder."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the file at the start of `fit`; other verbs do not change it."""
        if stage == "fit" and trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / "config.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            names = [made_with(str(config)) for config in self.config.get("config") or ()]
            head = f"{MADE_WITH}{', '.join(names)}\n" if names else ""  # a comment: the file stays a config
            with whole_file(path) as file:  # a resumed run rewrites it, and may be killed meanwhile
                file.write((head + self.parser.dump(self._lasting(), skip_none=False)).encode())

    def _lasting(self) -> Any:
        """The config without options of this one command: the next command with the file must not repeat them."""
        config = self.config.clone()
        resumes = [("trainer.max_time", None)] if config.get("ckpt_path") else []  # how long this command may take
        for option, unset in (("ckpt_path", None), ("weights_only", None), ("overwrite", False), *resumes):
            if option in config:
                config[option] = unset
        return without_enums(config)


class History(pl.Callback):
    """Logs further curves besides losses and recalls, such as `train/lr` and the cosines of pairs."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """The largest learning rate of all groups in this step, and what the epoch has skipped so far."""
        if logs_now(trainer):
            rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
            pl_module.log("train/lr", max(rates))
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            for name, number in (("skipped", data.skipped), ("bad_shards", data.bad_shards)):
                pl_module.log(f"train/{name}", float(number), reduce_fx="sum", sync_dist=True)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """The norm of all gradients, averaged over processes, before they are clipped and without fp16's scale."""
        if logs_now(trainer):
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            scale = loss_scale(trainer, norm.device)
            if scale is not None and optimizer.defaults["fused"]:  # which takes the scale out itself, in its step
                norm = norm / scale
            pl_module.log("train/grad_norm", norm)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The mean score of a caption with its own image, and with the others."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            assert isinstance(pl_module, RetrievalModule)
            gallery = pl_module.last_gallery
            matched, unmatched = mean_scores(gallery.score(), gallery.own_image())
            figures = {"val/similarity_matched": matched, "val/similarity_unmatched": unmatched}
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=trainer.global_step - 1)


class Results(pl.Callback):
    """Prints and stores the results of an evaluation: `metrics.json` after `test`, `embeddings.npz` after `predict`.

    Args:
        ckpt_path: the checkpoint whose weights are evaluated.
    """

    def __init__(self, ckpt_path: str | None = None) -> None:
        self._reported, self._begun, self._shown = False, -1, -1
        self._path = Path(ckpt_path) if ckpt_path and Path(ckpt_path).is_file() else None
        self._model: dict[str, str] = {"checkpoint": "none"}
        self._state: FileState | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Identify the checkpoint before its weights are loaded: another one may have its name when the run ends."""
        if stage == "test" and trainer.is_global_zero and self._path:
            self._state, self._model = FileState.of(self._path), checkpoint_identity(self._path)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a checkpoint that was replaced while it was loaded."""
        if self._state and self._path and not FileState.of(self._path).same_content(self._state):
            raise UserError(f"the checkpoint {self._path} changed while it was loaded; test it again")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print all metrics of `itr validate`, and one line for an epoch of `itr fit`."""
        if trainer.state.fn == "validate":
            self._show(trainer, pl_module)
        elif not trainer.sanity_checking:
            self._show_epoch(trainer, pl_module)
            if not self._reported:
                self._report_notes(trainer, pl_module, "val")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Note that this epoch is trained, and not only ended by a run that resumes after it."""
        self._begun = trainer.current_epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print one line for an epoch without validation too."""
        if self._shown < trainer.current_epoch == self._begun:
            self._show_line(trainer, "")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the metrics and write them to a file."""
        self._show(trainer, pl_module)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._write(trainer, pl_module)

    @rank_zero_only
    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the embeddings."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        gallery = self._module(pl_module).last_gallery
        path = self._folder(trainer) / "embeddings.npz"
        arrays = with_lengths(gallery.arrays())
        with whole_file(path) as file:
            np.savez(file, allow_pickle=False, **arrays)
        print(f"\nembeddings of {len(gallery.image_id)} images and {len(gallery.text_id)} captions are in {path}")

    @rank_zero_only
    def _show(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module = self._module(pl_module)
        gallery = module.last_gallery
        print(f"\n{len(gallery.image_id)} images, {len(gallery.text_id)} captions; recall and precision in percent")
        print(recall_table(module.metrics))
        self._report_notes(trainer, pl_module, "val" if trainer.state.fn == "validate" else "test")

    @rank_zero_only
    def _report_notes(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Report, once, what was merged or left out."""
        self._reported = True
        for note in measured_notes(self._data(trainer, pl_module, stage)):
            log.warning("%s", note)

    def _data(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> dict[str, Any]:
        """Identity and counts of the data that was measured."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        gallery = self._module(pl_module).last_gallery
        return measured(data.identity(stage), len(gallery.image_id), len(gallery.text_id), gallery.num_samples)

    @rank_zero_only
    def _show_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        figures = self._module(pl_module).metrics
        recalls = ", ".join(f"{way} R@1 {figures[f'val/{way}_r1']:.2f}" for way in DIRECTIONS)
        self._show_line(trainer, f", val {recalls}, rsum {figures['val/rsum']:.2f}")

    @rank_zero_only
    def _show_line(self, trainer: pl.Trainer, scores: str) -> None:
        self._shown = trainer.current_epoch
        loss = float(trainer.callback_metrics.get("train/loss", math.nan))  # missing if a resumed run validates first
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        more = f", {data.skipped} bad images skipped" if data.skipped else ""
        more += f", {data.bad_shards} bad shards" if data.bad_shards else ""
        last = f"/{trainer.max_epochs}" if (trainer.max_epochs or 0) > 0 else ""  # `max_steps` alone may end a run
        tqdm.write(f"epoch {trainer.current_epoch + 1}{last}: loss {loss:.4f}{scores}{more}")

    @rank_zero_only
    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        path = self._folder(trainer) / "metrics.json"
        write_figures(path, self._module(pl_module).metrics, self._about(trainer, pl_module))
        print(f"\nwritten to {path}")

    def _about(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The provenance of the metrics."""
        seed = os.environ.get("PL_GLOBAL_SEED")
        return about(
            PROTOCOL,
            self._model,
            self._data(trainer, pl_module, "test"),
            seed=None if seed is None else int(seed),
            precision=str(trainer.precision),
            config=shortened(self._module(pl_module).describe()),
            scored_by=self._module(pl_module).last_gallery.scorer.name,
        )

    @staticmethod
    def _module(pl_module: pl.LightningModule) -> RetrievalModule:
        assert isinstance(pl_module, RetrievalModule)
        return pl_module

    @staticmethod
    def _folder(trainer: pl.Trainer) -> Path:
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
