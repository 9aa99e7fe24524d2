"""What the checkpoints of a run contain, and which of them is the best."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from itr.cli import main
from itr.commands.quieten import quieten
from itr.data.datamodule import ShardData
from itr.module import RetrievalModule
from itr.objectives import InfoNCE
from itr.runs.checkpoints.checkpointing import Checkpoints
from itr.runs.checkpoints.settings import CheckpointSettings
from itr.runs.command import TrainingCLI
from itr.runs.stopping import Signals
from soak import differences, final
from tiny import TINY_VSE
from training_runs import checkpoint, options

QUICK = ["--data.num_workers=0", "--trainer.logger=false"]
STEADY = ["--model.optimizer.schedule=constant", "--model.optimizer.warmup=0"]


class Scored(RetrievalModule):
    """Logs a given score after each epoch instead of its own."""

    scores = (100.0, math.nan, 50.0)

    def _evaluate(self, stage: str) -> None:
        self.metrics = {"val/rsum": self.scores[self.current_epoch]}
        self._finish_gallery()
        self.log_dict(self.metrics)


@pytest.mark.parametrize(
    ("scores", "best", "step"), [((100.0, math.nan, 50.0), 100.0, 5), ((math.nan, 7.0, 9.0), 9.0, 15)]
)
def test_a_nan_score_is_never_the_best(scenes, tmp_path, scores, best, step):
    assert fit_scored(scenes, tmp_path, scores).best_score == best
    assert checkpoint(tmp_path, "best")["global_step"] == step
    assert checkpoint(tmp_path)["global_step"] == 15


class NoRoomForLast(pl.Callback):
    """Puts a folder in place of the last checkpoint, so that it cannot be written."""

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        (Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt.part").mkdir(exist_ok=True)


class NoRoomForBest(pl.Callback):
    """Puts a folder in place of the best checkpoint in the second epoch, so that it cannot be written then."""

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: object) -> None:
        part = Path(trainer.default_root_dir) / "checkpoints" / "best.ckpt.part"
        if trainer.current_epoch == 1:
            part.mkdir()
        elif part.is_dir():
            part.rmdir()


def test_a_best_checkpoint_that_could_not_be_written_does_not_stand_in_the_way_of_the_next(scenes, tmp_path):
    assert fit_scored(scenes, tmp_path, (50.0, 100.0, 60.0), NoRoomForBest()).best_score == 60.0
    assert checkpoint(tmp_path, "best")["global_step"] == 15


@pytest.mark.slow
def test_the_best_checkpoint_stays_if_the_last_could_not_be_written(scenes, tmp_path):
    saver = fit_scored(scenes, tmp_path, (100.0, 50.0, 60.0), NoRoomForLast())
    assert saver.best_score == 100.0
    assert "after step 15, whose checkpoint could not be written: no checkpoint" in saver.unwritten(15)
    assert checkpoint(tmp_path, "best")["global_step"] == 5
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


class LosesTheBest(pl.Callback):
    """Deletes the best checkpoint at the beginning of the second epoch."""

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.current_epoch == 1:
            (Path(trainer.default_root_dir) / "checkpoints" / "best.ckpt").unlink()


@pytest.mark.slow
@pytest.mark.parametrize(("scores", "step"), [((100.0, 50.0, 60.0), 15), ((100.0, 50.0, 40.0), 10)])
def test_a_best_checkpoint_that_was_deleted_is_written_again(scenes, tmp_path, scores, step):
    assert fit_scored(scenes, tmp_path, scores, LosesTheBest()).best_score == max(scores[1:])
    assert checkpoint(tmp_path, "best")["global_step"] == step


def fit_scored(scenes: Path, tmp_path: Path, scores: tuple[float, ...], *callbacks: pl.Callback) -> Checkpoints:
    """The callback of a run of three epochs of five steps with these scores."""
    quieten()
    built = TrainingCLI([*TINY_VSE, "--trainer.accelerator=cpu"], run=False).model
    module = Scored(built.backbone, InfoNCE())
    module.scores = scores
    saver = Checkpoints(tmp_path / "checkpoints", CheckpointSettings(), Signals(), fresh=True)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=3, callbacks=[*callbacks, saver], logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, datamodule=ShardData(str(scenes), batch_size=8, num_workers=0))
    return saver


@pytest.mark.slow
@pytest.mark.parametrize(
    "stopped",
    [["--trainer.max_steps=7", "--trainer.max_epochs=-1"], ["--trainer.max_steps=7", "--data.val_split=null"]],
)
def test_a_run_with_max_steps_resumes_to_more_steps(scenes, tmp_path, stopped):
    """Lightning counts the unfinished epoch as done."""
    whole = [*QUICK, *STEADY, *stopped, "--trainer.max_steps=13"]
    assert main(options(scenes, tmp_path / "whole", *whole)) == 0
    assert main(options(scenes, tmp_path / "parts", *QUICK, *STEADY, *stopped)) == 0
    assert checkpoint(tmp_path / "parts")["global_step"] == 7
    assert main(options(scenes, tmp_path / "parts", *whole, "--ckpt_path=last")) == 0
    assert not differences(*(checkpoint(tmp_path / name)["state_dict"] for name in ("whole", "parts")))


@pytest.mark.slow
def test_a_run_that_reached_max_time_resumes_within_the_epoch(scenes, tmp_path):
    limited = [
        "--trainer.max_time=00:00:00:02",
        "--trainer.callbacks+=training_runs.Slow",
        "--trainer.callbacks.seconds=0.9",
    ]
    more = [*QUICK, *STEADY, "--data.val_split=null"]
    assert main(options(scenes, tmp_path / "parts", *more, *limited, "--trainer.max_epochs=2")) == 0
    assert 0 < checkpoint(tmp_path / "parts")["global_step"] < 5
    assert main(options(scenes, tmp_path / "parts", *more, "--trainer.max_epochs=2", "--ckpt_path=last")) == 0
    assert main(options(scenes, tmp_path / "whole", *more, "--trainer.max_epochs=2")) == 0
    assert not differences(*(checkpoint(tmp_path / name)["state_dict"] for name in ("whole", "parts")))


@pytest.mark.parametrize(
    "fails", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["after a validation", "where the run ends early"]
)
def test_accumulated_gradients_are_not_lost(scenes, tmp_path, fails):
    """Gradients of the third of five batches wait for the fourth, and validation comes between them."""
    more = [*QUICK, "--trainer.max_epochs=3", "--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=3"]
    ends = ["--trainer.callbacks+=training_runs.EndsAt", f"--trainer.callbacks.fails={fails}"]
    ends.append(f"--trainer.callbacks.batch={9 if fails else 8}")
    assert main(options(scenes, tmp_path / "whole", *more)) == 0
    with pytest.raises(AssertionError, match="batch 9 fails") if fails else nullcontext():
        assert main(options(scenes, tmp_path / "parts", *more, *ends)) == 0
    assert checkpoint(tmp_path / "parts")["global_step"] == (3 if fails else 5)
    assert main(options(scenes, tmp_path / "parts", *more, "--ckpt_path=last")) == 0
    whole, parts = final(tmp_path / "whole"), final(tmp_path / "parts")
    if not fails:  # a run that ends early validates once more at its end, and that may be the best score of all
        for name in ("best", "best weights"):
            del whole[name], parts[name]
    assert not differences(whole, parts)


@pytest.mark.slow
def test_the_best_score_of_an_older_checkpoint_format_is_kept(scenes, tmp_path):
    """Earlier versions had Lightning's ModelCheckpoint write both files."""
    quieten()
    where = [f"--data.root={scenes}", "--data.batch_size=8", "--data.num_workers=0", "--trainer.accelerator=cpu"]
    built = TrainingCLI([*TINY_VSE, *where, "--seed_everything=0"], run=False)
    folder = tmp_path / "checkpoints"
    best = ModelCheckpoint(folder, filename="best", monitor="val/rsum", mode="max", enable_version_counter=False)
    last = ModelCheckpoint(folder, filename="last", enable_version_counter=False)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[best, last], logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(built.model, datamodule=built.datamodule)
    before = checkpoint(tmp_path, "best")["state_dict"]
    unbeatable = torch.load(folder / "last.ckpt", weights_only=True)
    for state in unbeatable["callbacks"].values():
        if state.get("monitor") == "val/rsum":
            state["best_model_score"] = torch.tensor(600.0)
    torch.save(unbeatable, folder / "last.ckpt")
    assert main(options(scenes, tmp_path, *QUICK, "--trainer.max_epochs=2", "--ckpt_path=last")) == 0
    assert checkpoint(tmp_path)["callbacks"]["Checkpoints"] == {"best_score": 600.0}
    assert not differences(before, checkpoint(tmp_path, "best")["state_dict"])


@pytest.mark.slow
def test_a_checkpoint_of_a_newer_version_is_refused(scenes, tmp_path, capsys):
    assert main(options(scenes, tmp_path, *QUICK, "--trainer.max_epochs=1")) == 0
    path = tmp_path / "checkpoints" / "last.ckpt"
    torch.save({**checkpoint(tmp_path), "itr_format": 99}, path)
    assert main(options(scenes, tmp_path, *QUICK, "--trainer.max_epochs=2", "--ckpt_path=last")) == 1
    assert "has format 99, but this version reads up to 1: update itr" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_beyond_max_epochs_is_reported(scenes, tmp_path, capsys):
    stop = ["--trainer.callbacks+=training_runs.SignalAt", "--trainer.callbacks.hook=on_train_batch_end"]
    stop += ["--trainer.callbacks.step=13", "--trainer.max_epochs=3"]
    assert main(options(scenes, tmp_path, *QUICK, *stop)) == 143
    assert main(options(scenes, tmp_path, *QUICK, "--trainer.max_epochs=1", "--ckpt_path=last")) == 1
    assert "itr: error: You restored a checkpoint with current_epoch=2" in capsys.readouterr().err
