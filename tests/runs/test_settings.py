"""Settings that are impossible, that contradict a checkpoint, or that are at a limit."""

from __future__ import annotations

import io
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from itr.backbones.base import Backbone
from itr.cli import main
from itr.data.shards.writer import Record, write_split
from itr.objectives import InfoNCE, Objective, Sigmoid, Triplet
from itr.runs.command import TrainingCLI
from itr.types import Encoded, Scores
from tiny import TINY_VSE


def command(folder: Path, shards: Path, *options: str) -> list[str]:
    where = [f"--data.root={shards}", f"--trainer.default_root_dir={folder}", "--data.batch_size=8"]
    fast = ["--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    return ["fit", *where, *fast, *TINY_VSE, "--trainer.max_epochs=1", *options]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--model.objective=Triplet --model.objective.margin=-1", "margin=-1.0 must not be negative"),
        ("--model.objective.temperature=0", "temperature 0.0 must be within its bounds"),
        ("--model.backbone.text_config.vocab_size=10", "the text tower only 10; use the tokenizer that belongs"),
        ("--model.backbone.max_words=4000", "max_words=4000 must be from 3 to 512 for this text tower"),
        ("--model.backbone.dim=0", "dim=0 must be at least 1"),
        ("--model.optimizer.lr=-1", "optimizer.lr is -1.0"),
        ("--model.optimizer.warmup=-2", "optimizer.warmup is -2.0"),
        ("--model.optimizer.betas=[0.9,1]", "optimizer.betas is [0.9, 1.0]"),
        ("--model.methods+=CUSA --model.methods.alpha=-1", "alpha is -1.0"),
        ("--model.methods+=CUSA", "give --data.features"),
        ("--model.methods+=D2S --model.methods+=D2S", "method 'd2s' is given twice"),
        ("--data.num_workers=-1", "data.num_workers is -1; it must be 0 or more"),
        ("--data.captions=3", "must be 1 or more and divide batch_size = 8"),
        ("--data.texts=dense --data.captions=all", "applies only to sparse captions"),
        ("--watch.max_bad_steps=0", "watch.max_bad_steps is 0; it must be 1 or more"),
    ],
)
def test_an_impossible_setting_is_refused_by_name(scenes, tmp_path, capsys, options, message):
    assert main(command(tmp_path, scenes, *options.split())) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.slow
def test_distilling_from_missing_dense_captions_is_refused(tmp_path, capsys):
    spy = ["--trainer.callbacks+=training_runs.Slow", "--trainer.callbacks.seconds=0"]
    for more in ("--model.methods+=D2S", "--data.texts=dense"):
        assert main(command(tmp_path / "run", plain_images(tmp_path), more, *spy)) == 1
        told = capsys.readouterr()
        assert "has no dense caption; generate dense captions with `itr densify`" in told.err
        assert "slow after step 0" not in told.out  # reported before the first batch


def plain_images(folder: Path) -> Path:
    def record(number: int) -> Record:
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), (number, 0, 0)).save(buffer, "JPEG")
        return Record(buffer.getvalue(), "jpg", [f"image {number}"], f"{number}.jpg")

    for split in ("train", "val"):
        write_split((record(number) for number in range(9)), folder / "shards", split, 9)
    return folder / "shards"


@pytest.mark.slow
def test_a_resumed_run_refuses_options_that_its_checkpoint_contradicts(scenes, tmp_path, capsys, caplog, monkeypatch):
    trained = ["--model.objective=Triplet", "--model.optimizer.lr=0.001"]
    assert main(command(tmp_path, scenes, *trained)) == 0
    again = ["--ckpt_path=last", "--trainer.max_epochs=2"]
    for options, message in (
        (["--model.optimizer.lr=9"], "--model.optimizer.lr 9.0 differs from 0.001"),
        (["--model.optimizer.lr", "9"], "--model.optimizer.lr 9.0 differs from 0.001"),
        (["--model.objective=InfoNCE"], "--model.objective InfoNCE differs from Triplet"),
        ([*trained, "--model.objective.margin=0.5"], "--model.objective.margin 0.5 differs from 0.2"),
        ([*trained, "--model.backbone.dim=16"], "--model.backbone.dim 16 differs from 32"),
        ([*trained, "--model.methods+=D2S"], "--model.methods ['D2S'] differs from []"),
    ):
        assert main(command(tmp_path, scenes, *again, *options)) == 1, options
        assert message in capsys.readouterr().err
    config = tmp_path / "other.yaml"
    config.write_text("model: {optimizer: {lr: 0.5}, objective: {class_path: Triplet}}")
    load, whole = torch.load, []

    def counting(*args, **kwargs):
        whole.extend([] if kwargs.get("mmap") else [args])
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", counting)
    with caplog.at_level(logging.INFO, logger="itr"):
        assert (
            main(command(tmp_path, scenes, f"--config={config}", *again)) == 0
        )  # differences in a config are reported, not refused
    assert len(whole) == 1  # its settings are read without its tensors
    assert "model.optimizer.lr is 0.001, as in" in caplog.text
    assert "the config's 0.5 is not used" in caplog.text


def test_a_chosen_class_has_its_own_defaults():
    cli = TrainingCLI(
        ["--model.objective=Sigmoid", "--model.objective.bias=-3", "--trainer.accelerator=cpu", *TINY_VSE], run=False
    )
    objective = cli.model.objective
    assert isinstance(objective, Sigmoid)
    assert objective.temperature.bounds == (0.005, 1.0)
    assert objective.temperature().item() == pytest.approx(0.1)
    assert objective.bias.item() == -3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("objective", [InfoNCE(), Triplet(hardest_after=0), Triplet(), Sigmoid()])
def test_an_embedding_of_zeros_gives_a_finite_loss_and_gradients(objective: Objective, dtype):
    torch.manual_seed(0)
    image, text = (torch.randn(6, 8, dtype=dtype) for _ in range(2))
    image[2] = text[4] = text[2] = 0

    def encoded(pooled: torch.Tensor) -> Encoded:
        return Encoded(pooled, pooled[:, :0, None], torch.ones(6, 0, dtype=torch.bool))

    rows = [side.requires_grad_() for side in (image, text)]
    similarity = Backbone.similarity(None, *map(encoded, rows))
    loss = objective(Scores.whole(similarity.float(), torch.eye(6, dtype=torch.bool)), 0.0)
    loss.backward()
    assert loss.isfinite()
    assert all(side.grad.isfinite().all() for side in rows)


@pytest.mark.slow
def test_a_last_batch_of_one_is_dropped_in_training_and_used_in_evaluation(tmp_path, capsys):
    shards = plain_images(tmp_path)
    assert main(command(tmp_path / "run", shards, "--data.eval_batch_size=8", "--model.objective=Triplet")) == 0
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 1  # of 9 images, 8 a batch
    measured = ["validate", f"--data.root={shards}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    fast = ["--data.num_workers=0", "--trainer.accelerator=cpu", "--data.eval_batch_size=8"]
    assert main([*measured, *fast]) == 0
    assert "6 images with 9 captions were measured" in "".join(capsys.readouterr())  # three images are equal to others


@pytest.mark.slow
def test_training_never_opens_the_test_split(scenes, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(scenes, shards)
    for tar in (shards / "test").iterdir():
        tar.write_bytes(np.random.default_rng(0).bytes(1000))  # reading one fails
    assert main(command(tmp_path / "run", shards)) == 0
    assert main(["test", f"--data.root={shards}", f"--trainer.default_root_dir={tmp_path / 'run'}",
                 "--trainer.accelerator=cpu", "--data.num_workers=0"]) == 1  # fmt: skip
    shutil.rmtree(shards / "test")
    assert main(command(tmp_path / "run", shards, "--overwrite=true")) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [[], ["--model.objective=Sigmoid"], ["--model.objective=Triplet"]], ids=["InfoNCE", "Sigmoid", "Triplet"]
)
def test_a_learnable_temperature_is_clamped_after_each_step_and_logged(scenes, tmp_path, options):
    driven = ["--model.optimizer.lr=5", "--model.optimizer.warmup=0", "--model.optimizer.tower_lr_factor=1e-9"]
    bounds = [] if "Triplet" in str(options) else ["--model.objective.temperature_bounds=[0.05,0.12]"]
    every = ["--trainer.log_every_n_steps=1", "--data.val_split=null"]
    assert main(command(tmp_path, scenes, *options, *bounds, *driven, *every)) == 0
    (path,) = tmp_path.rglob("metrics.csv")
    header, *rows = [line.split(",") for line in path.read_text().splitlines()]
    if not bounds:
        assert not [name for name in header if "temperature" in name]
        return
    values = [float(row[header.index("train/temperature")]) for row in rows]
    assert len(values) == 5
    assert all(0.0499 < value < 0.1201 for value in values)
    assert {0.05, 0.12} & {round(value, 4) for value in values}  # a rate of 5 has driven it to a bound
