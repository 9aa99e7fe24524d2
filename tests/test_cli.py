"""The command line: complete runs of tiny models, and the message for each wrong option."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from itr.cli import VERBS, main
from itr.module import RetrievalModule
from itr.runs.command import TrainingCLI
from tiny import STILL_VSE, TINY_CLIP, TINY_VSE

FAST = ["--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def run(verb: str, folder: Path, shards: Path, *options: str) -> int:
    return main([verb, f"--data.root={shards}", f"--trainer.default_root_dir={folder}", *FAST, *options])


def fit(folder: Path, shards: Path, *options: str) -> int:
    return run("fit", folder, shards, "--data.batch_size=8", "--trainer.max_epochs=1", *options)


@pytest.fixture(scope="module")
def trained(scenes, tmp_path_factory) -> Path:
    """A run folder after `fit`."""
    folder = tmp_path_factory.mktemp("run")
    assert fit(folder, scenes, *TINY_VSE) == 0
    return folder


def test_a_run_writes_all_promised_files(trained):
    for name in ("config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        assert (trained / name).is_file()
    assert list(trained.glob("logs/*/metrics.csv"))
    assert list(trained.glob("logs/*/events.out.tfevents.*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "objective"),
    [
        (TINY_CLIP, "Sigmoid"),
        *(pytest.param(*swapped, marks=pytest.mark.slow)
          for swapped in ((TINY_VSE, "InfoNCE"), (TINY_VSE, "Triplet"), (TINY_VSE, "Sigmoid"), (TINY_CLIP, "InfoNCE"),
                          (TINY_CLIP, "Triplet"))),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0].partition("=")[2],
)  # fmt: skip
def test_backbones_and_objectives_swap_on_the_same_shards(scenes, tmp_path, backbone, objective):
    assert fit(tmp_path, scenes, *backbone, f"--model.objective={objective}") == 0
    assert run("test", tmp_path, scenes, "--ckpt_path=best") == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    about = metrics.pop("about")
    assert about["data"]["images"] == 17
    assert about["model"]["checkpoint"] == "best.ckpt"
    assert len(about["model"]["blake2b"]) == 32
    assert about["config"]["objective"]["class_path"].endswith(objective.partition("=")[2] or objective)
    assert about["seed"] == 0
    wanted = {f"test/{way}_{name}" for way in ("i2t", "t2i") for name in ("r1", "r5", "r10", "medr", "meanr")}
    assert wanted | {"test/rsum", "test/all/i2t_map_at_r", "test/all/t2i_r_precision"} <= set(metrics)
    assert all(np.isfinite(value) for value in metrics.values())
    module = RetrievalModule.load_from_checkpoint(tmp_path / "checkpoints" / "best.ckpt")
    assert type(module.backbone).__name__ == backbone[0].partition("=")[2]
    assert type(module.objective).__name__ == objective


@pytest.mark.slow
def test_a_checkpoint_loads_alone_and_gives_the_embeddings_of_the_run(trained, scenes, tmp_path):
    assert run("predict", tmp_path, scenes, f"--ckpt_path={trained / 'checkpoints' / 'last.ckpt'}") == 0
    module = RetrievalModule.load_from_checkpoint(trained / "checkpoints" / "last.ckpt").eval()
    with np.load(tmp_path / "embeddings.npz") as arrays:
        assert arrays["image"].shape == (17, 32)
        assert len(arrays["text"]) == len(arrays["caption_id"]) == len(arrays["caption_image_id"])
        from itr.data.shards.tars import read_tar

        samples = [s for path in sorted((scenes / "test").glob("*.tar")) for s in read_tar(path)]
        captions = {i: c for s in samples for i, c in zip(s.caption_ids, s.captions, strict=True)}
        with torch.no_grad():
            for row in (0, len(captions) - 1):
                found = module.encode_text([captions[int(arrays["caption_id"][row])]]).pooled[0]
                torch.testing.assert_close(found, torch.from_numpy(arrays["text"][row]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("step", [5, 7], ids=["after an epoch", "within an epoch"])
@pytest.mark.slow
def test_resume_ends_at_the_weights_of_an_uninterrupted_run(scenes, tmp_path, step):
    still = [option.replace("intermediate_size", "hidden_dropout_prob: 0.0, intermediate_size") for option in TINY_VSE]
    still = [option.replace("hidden_size", "attention_probs_dropout_prob: 0.0, hidden_size") for option in still]
    still += ["--model.backbone.visual_token_drop=0", "--model.backbone.word_mask=0", "--data.batch_size=8"]
    still += ["--model.optimizer.schedule=constant", "--model.optimizer.warmup=0"]
    still += ["--trainer.max_epochs=3", "--data.num_workers=2"]
    keep = ["--trainer.callbacks+=ModelCheckpoint", f"--trainer.callbacks.dirpath={tmp_path}"]
    keep += [f"--trainer.callbacks.every_n_train_steps={step}", "--trainer.callbacks.filename=step-{step}"]
    assert run("fit", tmp_path, scenes, *still, *keep, "--trainer.callbacks.save_top_k=-1") == 0
    one = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    (tmp_path / "checkpoints" / "last.ckpt").unlink()
    assert run("fit", tmp_path, scenes, *still, f"--ckpt_path={tmp_path / f'step-step={step}.ckpt'}") == 0
    two = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert one["global_step"] == two["global_step"] == 15
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for name, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][name]), name


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.slow
def test_precisions_with_clipping(scenes, tmp_path, precision):
    options = [f"--trainer.precision={precision}", "--trainer.gradient_clip_val=0.5"]
    assert fit(tmp_path, scenes, *TINY_VSE, *options) == 0
    assert run("test", tmp_path, scenes, f"--trainer.precision={precision}") == 0


def test_random_weights_are_not_measured(scenes, tmp_path, capsys):
    assert run("test", tmp_path, scenes, *TINY_VSE) == 1
    assert (
        "the config builds has random weights (the vision tower, the text tower, the projections)"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "metrics.json").exists()


def test_validate_prints_metrics(trained, scenes, capsys):
    assert run("validate", trained, scenes) == 0
    shown = capsys.readouterr()
    assert "13 images" in shown.out
    assert "R@10" in shown.out


@pytest.mark.slow
def test_training_without_validation(scenes, tmp_path):
    assert fit(tmp_path, scenes, *TINY_VSE, "--data.val_split=null") == 0
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.root=nowhere"], "the shard folder nowhere does not exist"),
        (["--data.batch_size=1"], "this batch has one"),
        (["--data.batch_size=100"], "44 pairs, which do not fill a batch of 100"),
        (["--data.batch_size=0"], "data.batch_size is 0"),
        (
            ["--data.val_split=train/*.tar"],
            "train/000000.tar of data.val_split = 'train/*.tar' is also used for training",
        ),
        (["--data.test_split=tset", "--data.val_split=vla"], "no split 'vla' (it has: test, train, val)"),
        (["--model.objective.temperature=7"], "temperature 7.0 must be within its bounds"),
        (["--ckpt_path=last"], "last.ckpt does not exist"),
        (["--config=demmo.yaml"], "nearest: demo.yaml"),
    ],
)
def test_wrong_options_have_one_clear_message(scenes, tmp_path, capsys, options, message):
    assert fit(tmp_path, scenes, *TINY_VSE, *options) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.batch_siz=8"], "--data.batch_size"),
        (["--trainer.max_epoch=1"], "--trainer.max_epochs"),
        (["--model.optimizer.lrr=1"], "--model.optimizer.lr"),
        (["--model.backbone.dimm=1"], "Did you mean dim?"),
        (["--model.backbone=VSEE"], "the class VSEE does not exist; did you mean VSE?"),
        (["--model.objective=Triplett"], "did you mean Triplet?"),
        (["--data.batch_size=many"], "data.batch_size is many; it must be a whole number"),
    ],
)
def test_unknown_options_come_with_a_near_match(scenes, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as exit_:
        fit(tmp_path, scenes, *options)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_a_run_is_not_overwritten_by_default(trained, scenes, capsys):
    assert fit(trained, scenes, *TINY_VSE) == 1
    assert "already holds a run" in capsys.readouterr().err


def test_a_tilde_in_the_run_folder_is_expanded(trained, scenes, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(trained.parent))
    home = Path("~") / trained.name
    assert fit(home, scenes, *TINY_VSE) == 1
    assert f"{trained} already holds a run" in capsys.readouterr().err


def test_model_options_beside_a_checkpoint_are_refused(trained, scenes, capsys):
    assert run("test", trained, scenes, "--ckpt_path=best", "--model.optimizer.lr=1") == 1
    assert "--model.optimizer.lr: the model and its settings come from" in capsys.readouterr().err


def test_files_that_are_not_checkpoints_are_reported(trained, scenes, tmp_path, capsys):
    (tmp_path / "torn.ckpt").write_bytes((trained / "checkpoints" / "last.ckpt").read_bytes()[:1000])
    assert run("test", trained, scenes, f"--ckpt_path={tmp_path / 'torn.ckpt'}") == 1
    assert "torn.ckpt as an itr checkpoint" in capsys.readouterr().err
    assert run("test", trained, scenes, "--ckpt_path=https://host/x.ckpt") == 1
    assert "not a local file" in capsys.readouterr().err


def test_verbs(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)
    assert main(["fti"]) == 2
    assert "did you mean 'fit'" in capsys.readouterr().err


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_output_pipe_ends_the_command_quietly(unbuffered):
    """As with `| head`, but before anything is printed."""
    end, pipe = os.pipe()
    os.close(end)
    command, variables = [sys.executable, "-m", "itr", "--help"], {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, env=variables)
    os.close(pipe)
    assert done.returncode == 128 + signal.SIGPIPE
    assert done.stderr == "itr: stopped: nothing reads its output any more\n"


HELP = """import contextlib, sys, itr.cli
with contextlib.suppress(SystemExit):
    itr.cli.main(sys.argv[1:])
print(*({"torch", "lightning"} & set(sys.modules)))"""


@pytest.mark.parametrize(
    ("verb", "heavy"),
    [
        ([], ""),
        (["prepare"], ""),
        (["data"], ""),
        (["demo"], ""),
        pytest.param(["features"], "", marks=pytest.mark.slow),
        pytest.param(["report"], "", marks=pytest.mark.slow),
    ],
)
def test_help_imports_no_heavy_packages_without_need(verb, heavy):
    command = [sys.executable, "-c", HELP, *verb, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == heavy


def together(verb: str, processes: int, folder: Path, shards: Path, *options: str) -> None:
    """Run a command on several processes of this machine, as users do."""
    where = [f"--data.root={shards}", f"--trainer.default_root_dir={folder}", *FAST]
    many = [f"--trainer.devices={processes}", "--trainer.strategy=ddp"] if processes > 1 else []
    subprocess.run([sys.executable, "-m", "itr", verb, *where, *many, *options], check=True, timeout=300)


@pytest.mark.slow
def test_several_processes_give_the_metrics_of_one(trained, scenes, tmp_path):
    """With 17 images in batches of 4, processes have shares of different sizes."""
    found = []
    for processes in (1, 2, 3):
        folder = tmp_path / str(processes)
        options = [f"--ckpt_path={trained / 'checkpoints' / 'best.ckpt'}", "--data.batch_size=4"]
        together("test", processes, folder, scenes, *options)
        found.append(json.loads((folder / "metrics.json").read_text()))
    about = [metrics.pop("about") for metrics in found]
    assert about[0]["data"] == about[1]["data"] == about[2]["data"]
    for metrics in found[1:]:
        assert metrics == pytest.approx(found[0], rel=0, abs=1e-6)


@pytest.mark.slow
def test_two_processes_train_the_same_with_any_division_of_a_batch(scenes, tmp_path):
    cut = ["local_loss=true", "loss_chunk=3", "gradient_cache=3"]
    saved = []
    for name, settings in (("plain", []), ("cut", cut)):
        # In float64, because Adam amplifies rounding errors of gradients that should be 0, such as a key bias's.
        options = [*STILL_VSE, "--trainer.precision=64-true", "--data.batch_size=4", "--trainer.max_epochs=2"]
        options += ["--trainer.gradient_clip_val=0.5", "--trainer.accumulate_grad_batches=2"]
        options += [f"--model.large_batch.{setting}" for setting in settings]
        together("fit", 2, tmp_path / name, scenes, *options)
        saved.append(torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True))
    assert saved[0]["global_step"] == saved[1]["global_step"] == 2 * 3  # 5 batches an epoch, 2 a step
    start = TrainingCLI([*STILL_VSE, f"--data.root={scenes}"], run=False).model.double().state_dict()
    for name, value in saved[0]["state_dict"].items():
        torch.testing.assert_close(saved[1]["state_dict"][name], value, rtol=1e-6, atol=1e-7)
    assert any((saved[0]["state_dict"][name] - value).abs().max() > 1e-4 for name, value in start.items())
