"""Losses and weights that are not finite: what stops, what is reported, and what is left on disk."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision

from itr.backbones import VSE, Backbone
from itr.cli import main
from itr.commands.quieten import quieten
from itr.data.datamodule import ShardData
from itr.data.features.headers import FeaturePaths, Header
from itr.data.features.writer import FeatureWriter
from itr.data.shards.locations import find_split
from itr.data.shards.schema import data_identity
from itr.data.shards.tars import read_tar
from itr.errors import UserError
from itr.methods import Method, MethodModule
from itr.module import RetrievalModule
from itr.objectives import InfoNCE
from itr.runs.callbacks import History
from itr.runs.watch import Watch
from itr.training.optim import OptimizerSettings
from itr.types import Pairs
from launching import ENOUGH
from tiny import TINY_VSE


class NotANumberModule(MethodModule):
    def losses(self, pairs: Pairs) -> dict[str, torch.Tensor]:
        """A term that is lost on the second process alone."""
        return {"lost": torch.tensor(float("nan") if os.environ.get("LOCAL_RANK") == "1" else 0.0)}


class NotANumber(Method):
    """A method with that term."""

    name = "odd"

    @property
    def weights(self) -> dict[str, float]:
        return {"lost": 1.0}

    def build(self, backbone: Backbone) -> NotANumberModule:
        return NotANumberModule()


FAST = ["--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
AT_ONCE = ["--model.optimizer.lr=1e30", "--model.optimizer.warmup=0"]
# 5 steps an epoch: the second begins with a rate at which weights are lost
IN_EPOCH_TWO = ["--model.optimizer.schedule=steps", "--model.optimizer.steps=[1.0]", "--model.optimizer.warmup=0"]
LOST = "--model.optimizer.step_factor=1e42"


def command(folder: Path, shards: Path, *options: str) -> list[str]:
    where = [f"--data.root={shards}", f"--trainer.default_root_dir={folder}", "--data.batch_size=8"]
    return ["fit", *where, *FAST, *TINY_VSE, "--trainer.max_epochs=3", *options]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def logged(folder: Path, name: str) -> list[float]:
    (path,) = folder.rglob("metrics.csv")
    with path.open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.mark.slow
def test_a_nan_loss_stops_the_run_and_names_the_step(scenes, tmp_path, capsys):
    assert main(command(tmp_path, scenes, *AT_ONCE, "--data.val_split=null")) == 1
    said = capsys.readouterr().err
    assert "the loss is not finite in step 1 (epoch 1, batch 2; its samples:" in said
    assert said.count(".tar:") == 3
    assert "and 5 more" in said
    assert "objective = nan" in said
    assert "last good checkpoint: none was written yet" in said
    assert "--model.optimizer.lr" in said
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.slow
def test_the_last_good_checkpoint_is_named_and_stays(scenes, tmp_path, capsys):
    assert main(command(tmp_path, scenes, *IN_EPOCH_TWO, LOST)) == 1
    last = tmp_path / "checkpoints" / "last.ckpt"
    said = capsys.readouterr().err
    assert "step 6 (epoch 2, batch 2" in said
    assert f"last good checkpoint: {last}, after 5 steps" in said
    for path in (last, tmp_path / "checkpoints" / "best.ckpt"):
        assert all(value.isfinite().all() for value in weights(path).values() if value.is_floating_point())


@pytest.mark.slow
def test_a_checkpoint_of_an_earlier_run_is_not_mistaken_for_one_of_this_run(scenes, tmp_path, capsys):
    assert main(command(tmp_path, scenes, "--trainer.max_epochs=1")) == 0
    assert main(command(tmp_path, scenes, "--overwrite=true", *AT_ONCE)) == 1
    assert "last good checkpoint: none" in capsys.readouterr().err


@pytest.mark.slow
def test_a_step_with_a_finite_loss_that_makes_weights_infinite_leaves_no_checkpoint(scenes, tmp_path, capsys):
    lost = ["--model.optimizer.lr=1e42", "--model.optimizer.warmup=0", "--trainer.limit_train_batches=1"]
    saving = ["--trainer.callbacks+=ModelCheckpoint", f"--trainer.callbacks.dirpath={tmp_path}"]
    for name, options in (
        ("epoch", ["--data.val_split=null"]),
        ("step", [*saving, "--trainer.callbacks.every_n_train_steps=1"]),
    ):
        assert main(command(tmp_path / name, scenes, *lost, *options)) == 1
        assert "weights are not finite after step 0 (epoch 1, batch 1" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.slow
def test_an_infinite_feature_appears_in_the_term_that_uses_it(scenes, tmp_path, capsys):
    split = find_split(scenes, "train")
    samples = [sample for shard in split.shards for sample in read_tar(shard.place)]
    ids = {"image": [s.image_id for s in samples], "text": [i for s in samples for i in s.caption_ids]}
    for modality in ("image", "text"):
        rows = torch.from_numpy(np.random.default_rng(0).normal(size=(len(ids[modality]), 4)))
        paths = FeaturePaths(tmp_path, "train", modality)
        writer = FeatureWriter(paths, Header("made up", modality, 4, len(rows), data_identity(split)), chunk=len(rows))
        writer.write(0, ids[modality], rows, ids[modality], [])
        writer.finish()
    np.load(paths.rows, mmap_mode="r+")[:, 0] = np.inf
    features = [f"--data.features={tmp_path}", "--model.methods+=CUSA"]
    assert main(command(tmp_path / "run", scenes, *features)) == 1
    said = capsys.readouterr().err
    assert "step 0" in said
    assert "cusa/csa = nan" in said
    assert "objective =" not in said


def train(
    folder: Path, shards: Path, scale: float | None, max_bad_steps: int = 20, lr: float = 5e-4, **options
) -> Watch:
    """Train a tiny model on the CPU in float32, or in fp16 under a scaler that starts at `scale`."""
    quieten()
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision = {"model_type": "vit", "image_size": 32, "patch_size": 16, **size}
    text = {"model_type": "bert", "pad_token_id": None, **size}
    backbone = VSE(vision_config=vision, text_config=text, dim=16, image_pooling="mean", text_pooling="mean")
    if scale is not None:
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        options["plugins"] = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    watch = Watch(max_bad_steps)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=3, default_root_dir=folder, logger=CSVLogger(folder), log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, limit_val_batches=0,
        callbacks=[watch, History()], **options,
    )  # fmt: skip
    module = RetrievalModule(backbone, InfoNCE(), optimizer=OptimizerSettings(lr, warmup=0))
    trainer.fit(module, ShardData(str(shards), batch_size=8, num_workers=0))
    return watch


def test_too_many_steps_skipped_by_fp16_stop_the_run(scenes, tmp_path):
    message = r"(?s)5 steps in a row were skipped .* the last in step 4 \(epoch 1, batch 5; .*bf16-mixed"
    with pytest.raises(UserError, match=message):
        train(tmp_path, scenes, scale=2.0**60, max_bad_steps=5)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"gradient_clip_val": 0.5}, {"accumulate_grad_batches": 2}], ids=str)
def test_a_few_steps_skipped_by_fp16_are_counted(scenes, tmp_path, options):
    watch = train(tmp_path, scenes, scale=2.0**18, max_bad_steps=8, **options)
    assert 1 <= watch.skipped_steps < 8
    norms = logged(tmp_path, "train/grad_norm")
    assert sum(not np.isfinite(norm) for norm in norms) == watch.skipped_steps
    assert logged(tmp_path, "train/skipped_steps")[-1] == watch.skipped_steps


@pytest.mark.slow
@pytest.mark.parametrize("clip", [None, 0.5])
def test_the_gradient_norm_is_logged_before_clipping_and_without_the_fp16_scale(scenes, tmp_path, clip):
    train(tmp_path / "single", scenes, scale=None, max_steps=1, gradient_clip_val=clip)
    train(tmp_path / "half", scenes, scale=1024.0, max_steps=1, gradient_clip_val=clip)
    (single,), (half,) = (logged(tmp_path / name, "train/grad_norm") for name in ("single", "half"))
    assert half == pytest.approx(single, rel=0.02)
    assert single > 0.5  # the clipped norm is not what is logged


@pytest.mark.slow
def test_fp16_clips_unscaled_gradients(scenes, tmp_path):
    """A norm far above the real one changes nothing; clipping scaled gradients would shrink them a thousandfold."""
    losses = []
    for name, clip in (("free", None), ("clipped", 1e4)):
        train(tmp_path / name, scenes, scale=1024.0, gradient_clip_val=clip)
        losses.append(logged(tmp_path / name, "train/loss"))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


@pytest.mark.slow
def test_a_loss_that_stays_nan_under_fp16_is_reported(scenes, tmp_path):
    with pytest.raises(UserError, match=r"(?s)3 steps in a row.* the last in step 3 .*objective = nan"):
        train(tmp_path, scenes, scale=1.0, max_bad_steps=3, lr=1e30)


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step(scenes, tmp_path):
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=4"]
    arguments = command(tmp_path, scenes, *AT_ONCE, *two)
    done = subprocess.run([sys.executable, "-m", "itr", *arguments], capture_output=True, text=True, timeout=ENOUGH)
    assert done.returncode == 1
    for process in (0, 1):
        assert f"step 1 (epoch 1, batch 2 on process {process} of 2" in done.stderr
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.slow
def test_a_nan_on_one_process_is_reported_by_it_and_ends_all(scenes, tmp_path):
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=4"]
    arguments = command(tmp_path, scenes, *two, "--model.methods+=test_watch.NotANumber")
    here = Path(__file__).parent
    paths = [here.parents[1] / "src", here, here.parent / "helpers"]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    words = [sys.executable, "-m", "itr", *arguments]
    done = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=ENOUGH)
    assert done.returncode != 0
    assert "the loss is not finite in step 0 (epoch 1, batch 1 on process 1 of 2" in done.stderr
    assert "not finite: odd/lost = nan" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.ckpt"))
