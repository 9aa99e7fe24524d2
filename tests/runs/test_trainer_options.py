"""Every option and callback of Lightning's Trainer does what it promises, or is refused by name."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import yaml
from lightning.pytorch.callbacks import EarlyStopping

from itr.cli import main
from itr.data.datamodule import ShardData
from itr.errors import UserError
from itr.runs.trainer_options import check_options, is_refusal
from training_runs import checkpoint, options

QUICK = ["--data.num_workers=0", "--trainer.max_epochs=2", "--data.eval_batch_size=5"]
SETS_NO_STEPS = {  # where and how it computes, and what it shows: options that change neither steps nor files
    "accelerator", "strategy", "devices", "num_nodes", "precision", "benchmark", "inference_mode", "sync_batchnorm",
    "enable_progress_bar", "enable_model_summary", "log_every_n_steps", "num_sanity_val_steps", "model_registry",
    "use_distributed_sampler", "enable_autolog_hparams", "default_root_dir", "gradient_clip_algorithm", "self",
}  # fmt: skip


class Seen(pl.Callback):
    """Keeps the batches that a run trains on, and how often it validates."""

    epochs: ClassVar[list[list[int]]] = []
    validations: ClassVar[list[int]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, index: int) -> None:
        if index == 0:
            self.epochs.append([])
        self.epochs[-1].extend(batch.image_id.tolist())

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self.validations.append(trainer.global_step)


@pytest.fixture
def seen():
    Seen.epochs.clear()
    Seen.validations.clear()
    return Seen


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


REFUSED = {
    "--trainer.barebones=true": "trainer.barebones switches off what a run is watched and measured by",
    "--trainer.accumulate_grad_batches=0": "trainer.accumulate_grad_batches is 0; give 1 or more",
    "--trainer.gradient_clip_val=-1": "trainer.gradient_clip_val is -1; give a norm",
    "--trainer.max_epochs=0": "trainer.max_epochs is 0: nothing would be trained",
    "--trainer.max_steps=0": "trainer.max_steps is 0: nothing would be trained",
    "--trainer.limit_train_batches=0": "trainer.limit_train_batches is 0: nothing would be trained",
    "--trainer.val_check_interval=0": "trainer.val_check_interval is 0; give more than 0",
    "--trainer.val_check_interval=100": "`val_check_interval` (100) must be less than or equal to the number of the",
    "--trainer.check_val_every_n_epoch=0": "trainer.check_val_every_n_epoch is 0; give more than 0",
    "--trainer.min_epochs=3": "trainer.min_epochs is 3, and trainer.max_epochs is 2: raise it",
    "--trainer.reload_dataloaders_every_n_epochs=-1": "trainer.reload_dataloaders_every_n_epochs is negative",
    "--trainer.callbacks+=BatchSizeFinder": "BatchSizeFinder trains some steps for each size",
    "--trainer.callbacks+=BackboneFinetuning": "BackboneFinetuning gives parameters to the optimizer later",
    "--trainer.callbacks+=LearningRateFinder": "LearningRateFinder sets one rate for all parameters",
    "--trainer.callbacks+=ModelPruning --trainer.callbacks.pruning_fn=l1_unstructured": "ModelPruning renames the",
    "--trainer.callbacks+=StochasticWeightAveraging --trainer.callbacks.swa_lrs=0.1": "puts its averages into the",
    "--trainer.plugins+=lightning.pytorch.plugins.io.AsyncCheckpointIO": "plugin AsyncCheckpointIO would not be used",
}


@pytest.mark.parametrize("option", [*REFUSED][:1] + [pytest.param(o, marks=pytest.mark.slow) for o in [*REFUSED][1:]])
def test_what_would_not_do_what_it_promises_is_refused_and_nothing_is_written(scenes, tmp_path, capsys, option):
    assert main(options(scenes, tmp_path / "run", *QUICK, *option.split())) == 1
    assert REFUSED[option] in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    assert not (tmp_path / "run").exists() or option == "--trainer.val_check_interval=100"  # the data say how many


# Options: steps of each epoch, steps after which the model is validated, checkpoints. Five batches are an epoch.
BOTH = ["best.ckpt", "last.ckpt"]
HONOURED = {
    "--trainer.limit_train_batches=2": ([2, 2], [2, 4], BOTH),
    "--trainer.limit_train_batches=0.4": ([2, 2], [2, 4], BOTH),
    "--trainer.limit_val_batches=0": ([5, 5], [], ["last.ckpt"]),
    "--trainer.limit_val_batches=1": ([5, 5], [5, 10], BOTH),
    "--trainer.overfit_batches=2": ([2, 2], [2, 4], BOTH),
    "--trainer.max_steps=7": ([5, 2], [5], BOTH),
    "--trainer.max_steps=3 --trainer.min_epochs=2": ([3], [], ["last.ckpt"]),
    "--trainer.max_epochs=-1 --trainer.max_steps=6": ([5, 1], [5], BOTH),
    "--trainer.val_check_interval=0.4": ([5, 5], [2, 4, 7, 9], BOTH),
    "--trainer.val_check_interval=3": ([5, 5], [3, 8], BOTH),
    "--trainer.val_check_interval=7 --trainer.check_val_every_n_epoch=null": ([5, 5], [7], BOTH),
    "--trainer.check_val_every_n_epoch=2": ([5, 5], [10], BOTH),
    "--trainer.check_val_every_n_epoch=3": ([5, 5], [], ["last.ckpt"]),
    "--trainer.accumulate_grad_batches=2": ([5, 5], [3, 6], BOTH),
    "--trainer.enable_checkpointing=false": ([5, 5], [5, 10], []),
    "--trainer.logger=false": ([5, 5], [5, 10], BOTH),
    "--trainer.reload_dataloaders_every_n_epochs=1": ([5, 5], [5, 10], BOTH),
    "--trainer.profiler=simple --trainer.detect_anomaly=true --trainer.deterministic=true": ([5, 5], [5, 10], BOTH),
    "--trainer.gradient_clip_val=1 --trainer.gradient_clip_algorithm=value": ([5, 5], [5, 10], BOTH),
    "--trainer.callbacks+=Timer --trainer.callbacks.duration=00:01:00:00": ([5, 5], [5, 10], BOTH),
    "--trainer.callbacks+=TQDMProgressBar --trainer.enable_progress_bar=true": ([5, 5], [5, 10], BOTH),
    "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val/rsum --trainer.callbacks.mode=max "
    "--trainer.callbacks.stopping_threshold=1 --trainer.max_epochs=3": ([5], [5], BOTH),
}


@pytest.mark.slow
@pytest.mark.parametrize("option", HONOURED)
def test_what_is_not_refused_is_followed(scenes, tmp_path, seen, option):
    steps, validations, saved = HONOURED[option]
    given = [*QUICK, "--trainer.callbacks+=test_trainer_options.Seen", *option.split()]
    assert main(options(scenes, tmp_path, *given)) == 0
    assert [len(epoch) // 8 for epoch in seen.epochs] == steps
    assert seen.validations == validations
    assert sorted(path.name for path in tmp_path.glob("checkpoints/*")) == saved
    assert bool(list(tmp_path.rglob("metrics.csv"))) == (bool(validations) and "logger=false" not in option)


def test_intervals_without_a_meaning_are_refused_by_name():
    kept = {"max_epochs": 2, "max_steps": -1, "limit_train_batches": None, "min_epochs": None, "min_steps": None}
    kept |= {"val_check_interval": 0.5, "check_val_every_n_epoch": 1, "reload_dataloaders_every_n_epochs": 0}
    kept |= {"accumulate_grad_batches": 1, "gradient_clip_val": None, "barebones": False}
    check_options(kept, training=True)
    for name, value in (("val_check_interval", 0.0), ("check_val_every_n_epoch", 0), ("min_epochs", 3)):
        with pytest.raises(UserError, match=rf"trainer\.{name} is {value}"):
            check_options({**kept, name: value}, training=True)
        check_options({**kept, name: value}, training=False)


def test_what_lightning_itself_refuses_is_told_from_faults_in_other_code():
    stopping = EarlyStopping("val_loss")
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(RuntimeError, match="which is not available") as refused:
        stopping._validate_condition_metric(trainer.callback_metrics)
    assert is_refusal(refused.value)
    with pytest.raises(ValueError, match="zero") as fault:
        int("zero")
    assert not is_refusal(fault.value)


@pytest.mark.slow
@pytest.mark.parametrize("more", ["", " --trainer.limit_val_batches=0"])
def test_a_callback_that_finds_no_metric_is_named_in_one_line(scenes, tmp_path, capsys, more):
    monitor = f"--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val_loss{more}"
    assert main(options(scenes, tmp_path, *QUICK, *monitor.split())) == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("itr: error: Early stopping conditioned on metric `val_loss` which is not available")


@pytest.mark.slow
def test_an_epoch_without_validation_has_its_line_too(scenes, tmp_path, capsys):
    elsewhere = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path / 'own'}"]
    given = ["--trainer.check_val_every_n_epoch=2", *elsewhere]
    assert main(options(scenes, tmp_path / "run", *QUICK, *given)) == 0
    lines = capsys.readouterr().out.splitlines()
    first, second = (line for line in lines if line.startswith("epoch "))
    assert first.startswith("epoch 1/2: loss ")
    assert "R@1" not in first
    assert second.startswith("epoch 2/2: loss ")
    assert "R@1" in second
    assert (
        lines[-1] == f"the run is in {tmp_path / 'run'}: checkpoints/, config.yaml"
    )  # and no logs/, which are elsewhere
    assert main(options(scenes, tmp_path / "run", *QUICK, *given, "--ckpt_path=last")) == 0
    assert "epoch 2" not in capsys.readouterr().out  # nothing was left to train


def test_the_tables_name_every_option_of_the_trainer():
    known = {part.partition("=")[0].removeprefix("--trainer.") for o in [*REFUSED, *HONOURED] for part in o.split()}
    elsewhere = {"fast_dev_run", "max_time", "min_steps", "limit_test_batches", "limit_predict_batches"}
    assert set(inspect.signature(pl.Trainer.__init__).parameters) - known - elsewhere - SETS_NO_STEPS == {
        "callbacks", "plugins"
    } - known  # fmt: skip


def test_every_epoch_is_that_of_epoch_0_with_overfit_batches():
    """With `overfit_batches`, order, captions and augmentation, which depend on the epoch, must repeat."""
    for overfits, epoch in ((2, 0), (0.5, 0), (0, 3)):
        trainer = pl.Trainer(accelerator="cpu", overfit_batches=overfits, logger=False, enable_checkpointing=False)
        trainer.fit_loop.epoch_progress.current.completed = 3
        data = ShardData()
        data.trainer = trainer
        assert trainer.current_epoch == 3
        assert data._training_position() == (epoch, 0)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_overfit_batches_repeats_the_same_batches(scenes, tmp_path, seen, recwarn, workers):
    more = ["--trainer.callbacks+=test_trainer_options.Seen", "--trainer.overfit_batches=1", "--trainer.max_epochs=3"]
    assert main(options(scenes, tmp_path, *QUICK, *more, f"--data.num_workers={workers}")) == 0
    assert len(seen.epochs) == 3
    assert seen.epochs[0] == seen.epochs[1] == seen.epochs[2]
    assert not [w for w in recwarn if "shuffling" in str(w.message)]


@pytest.mark.slow
def test_a_trial_writes_nothing_into_a_new_folder_or_an_existing_run(scenes, tmp_path, capsys):
    where = options(scenes, tmp_path / "run", *QUICK, "--trainer.fast_dev_run=2")
    assert main(where) == 0
    assert "wrote nothing" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert main(options(scenes, tmp_path / "run", *QUICK, "--trainer.max_steps=3")) == 0
    before = files(tmp_path)
    for more in ([], ["--ckpt_path=last"], ["--overwrite=true"]):
        assert main([*where, *more]) == 0
        assert files(tmp_path) == before
    shards = [f"--data.root={scenes}", f"--trainer.default_root_dir={tmp_path / 'run'}", "--data.num_workers=0"]
    for verb in ("validate", "test", "predict"):
        assert main([verb, *shards, "--ckpt_path=last", "--trainer.accelerator=cpu", "--trainer.fast_dev_run=1"]) == 0
        assert files(tmp_path) == before
    assert checkpoint(tmp_path / "run")["global_step"] == 3


@pytest.mark.slow
def test_a_run_without_checkpoints_does_not_share_a_folder_with_those_of_another(scenes, tmp_path, capsys):
    assert main(options(scenes, tmp_path, *QUICK, "--trainer.max_steps=1")) == 0
    for more in ([], ["--overwrite=true"], ["--ckpt_path=last"]):
        assert main(options(scenes, tmp_path, *QUICK, "--trainer.enable_checkpointing=false", *more)) == 1
        assert "holds the checkpoints of a run, and with --trainer.enable_checkpointing" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_without_an_end_needs_a_schedule_without_one(scenes, tmp_path, capsys):
    endless = [*QUICK, "--trainer.max_epochs=-1", "--trainer.max_time=00:00:00:02"]
    assert main(options(scenes, tmp_path / "a", *endless)) == 1
    assert "schedule cosine with warmup 0.05 depends on the length of the run" in capsys.readouterr().err
    constant = ["--model.optimizer.schedule=constant", "--model.optimizer.warmup=3"]
    assert main(options(scenes, tmp_path / "b", *endless, *constant)) == 0
    assert checkpoint(tmp_path / "b")["global_step"] > 0
    assert yaml.safe_load((tmp_path / "b" / "config.yaml").read_text())["trainer"]["max_epochs"] == -1
