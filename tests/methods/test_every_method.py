"""Properties of every method, driven by one table of settings. A new method is one more row."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

import itr.methods
from itr.cli import main
from itr.commands.quieten import quieten
from itr.data.features.headers import FeaturePaths, Header
from itr.data.features.writer import FeatureWriter
from itr.data.shards.locations import find_split
from itr.data.shards.schema import data_identity
from itr.data.shards.tars import read_tar
from itr.errors import UserError
from itr.methods import CUSA, D2S
from itr.module import RetrievalModule
from itr.passes.features import make_features
from itr.runs.command import TrainingCLI
from tiny import TINY_VSE
from tiny_teachers import save_image_teacher, save_text_teacher

SMALL_D2S = ["--model.methods+=D2S", "--model.methods.num_prompts=3", "--model.methods.depth=1"]
METHODS: dict[str, list[str]] = {
    "CSA": ["--model.methods+=CUSA", "--model.methods.beta=0"],
    "USA": ["--model.methods+=CUSA", "--model.methods.alpha=0"],
    "CUSA": ["--model.methods+=CUSA"],
    "CUSA dot, cross entropy": [
        "--model.methods+=CUSA", "--model.methods.targets=dot", "--model.methods.loss=cross_entropy",
    ],
    "D2S": SMALL_D2S,
    "D2S cross attention, no residual": [
        *SMALL_D2S, "--model.methods.cross_attention=true", "--model.methods.residual=false",
    ],
    "CUSA, teachers in the loop": [
        "--model.methods+=CUSA", "--model.methods.teachers.text={made}/text_teacher",
        "--model.methods.teachers.image={made}/image_teacher",
    ],
    "D2S, cached": [*SMALL_D2S, "--model.methods.stage1={made}/checkpoints/last.ckpt", "--model.methods.cached=true"],
    "D2S without distillation": [*SMALL_D2S, "--model.methods.weight=0"],
    "CUSA+D2S": ["--model.methods+=CUSA", *SMALL_D2S],
}  # fmt: skip
OFTEN = ("CUSA", "D2S", "CUSA+D2S", "D2S, cached")  # the other rows run only with the slow tests
ENOUGH = ("CUSA+D2S",)  # for tests with two runs
RESUMED = [name if name in ENOUGH else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
ROWS = [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
SETTINGS = [*TINY_VSE, "--model.optimizer.schedule=constant", "--model.optimizer.warmup=0"]  # dropout stays on


@pytest.fixture(scope="module")
def features(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the training split of the scenes: features of synthetic teachers, teachers to run, and a first stage."""
    folder = tmp_path_factory.mktemp("features")
    split = find_split(scenes, "train")
    samples = [sample for shard in split.shards for sample in read_tar(shard.place)]
    ids = {"image": [s.image_id for s in samples], "text": [i for s in samples for i in s.caption_ids]}
    for modality, width in (("image", 6), ("text", 5)):
        rows = torch.from_numpy(np.random.default_rng(width).normal(size=(len(ids[modality]), width)))
        header = Header("made up", modality, width, len(rows), data_identity(split))
        writer = FeatureWriter(FeaturePaths(folder, "train", modality), header, chunk=len(rows))
        writer.write(0, ids[modality], rows, ids[modality], [])
        writer.finish()
    save_text_teacher(folder / "text_teacher", [text for s in samples for text in s.captions])
    save_image_teacher(folder / "image_teacher")
    dense = ["--data.texts=dense", "--trainer.max_epochs=1"]
    assert main(["fit", *common(scenes, folder, folder), *dense]) == 0
    stage1 = str(folder / "checkpoints" / "last.ckpt")
    make_features(str(scenes), "dense", str(folder), stage1, num_workers=0)
    return folder


def common(scenes: Path, features: Path, folder: Path) -> list[str]:
    fast = [f"--data.root={scenes}", f"--data.features={features}", "--data.batch_size=8", "--data.num_workers=0"]
    fast += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.logger=false"]
    return [*fast, f"--trainer.default_root_dir={folder}", *SETTINGS]


def options(scenes: Path, features: Path, folder: Path, name: str) -> list[str]:
    return [*common(scenes, features, folder), *(option.format(made=features) for option in METHODS[name])]


class Watch(pl.Callback):
    """Records which parameters got a gradient in any step."""

    def __init__(self) -> None:
        self.seen: dict[str, bool] = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad:
                moved = parameter.grad is not None
                self.seen[name] = self.seen.get(name, True) and moved


@pytest.mark.parametrize("name", ROWS)
def test_it_trains_all_its_parameters_and_no_teacher(scenes, features, tmp_path, name):
    quieten()
    cli = TrainingCLI([*options(scenes, features, tmp_path, name), "--trainer.max_epochs=1"], run=False)
    before = {key: value.clone() for key, value in cli.model.state_dict().items()}
    watch = Watch()
    cli.trainer.callbacks.append(watch)
    cli.trainer.fit(cli.model, cli.datamodule)
    assert all(watch.seen.values()), [key for key, seen in watch.seen.items() if not seen]
    after = cli.model.state_dict()
    teachers = [key for key in after if ".teacher." in key]
    assert bool(teachers) == ("D2S" in name and "without" not in name and "cached" not in name)
    assert all(torch.equal(before[key], after[key]) for key in teachers)
    own = [key for key in after if key.startswith("methods.") and key not in teachers]
    assert any(not torch.equal(before[key], after[key]) for key in own)
    for method in cli.model.methods.children():
        assert not any(part.training for key, part in method.named_modules() if key.startswith("teacher"))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_it_trains_in_parts_and_chunks(scenes, features, tmp_path, name):
    parts = ["--model.large_batch.gradient_cache=3", "--model.large_batch.loss_chunk=5"]
    chosen = options(scenes, features, tmp_path, name)
    assert main(["fit", *chosen, *parts, "--trainer.max_epochs=1"]) == 0
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 5
    assert (
        main(["fit", *chosen, "--model.large_batch.gradient_cache=5", "--trainer.max_epochs=2", "--ckpt_path=last"])
        == 0
    )
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 10  # a run may resume with other parts
    assert all(value.isfinite().all() for value in saved["state_dict"].values() if value.is_floating_point())


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_it_resumes_to_the_weights_of_an_uninterrupted_run_and_loads(scenes, features, tmp_path, name):
    chosen = options(scenes, features, tmp_path, name)
    keep = ["--trainer.callbacks+=ModelCheckpoint", f"--trainer.callbacks.dirpath={tmp_path}"]
    keep += ["--trainer.callbacks.every_n_train_steps=3", "--trainer.callbacks.filename=step-{step}"]
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert main(["fit", *chosen, *keep, "--trainer.callbacks.save_top_k=-1", "--trainer.max_epochs=2"]) == 0
    whole = torch.load(last, weights_only=True)
    last.unlink()
    resumed = f"--ckpt_path={tmp_path / 'step-step=3.ckpt'}"
    assert main(["fit", *chosen, "--trainer.max_epochs=2", resumed]) == 0
    again = torch.load(last, weights_only=True)
    assert whole["global_step"] == again["global_step"] == 10
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, again["state_dict"][key]), key
    opened = RetrievalModule.load_from_checkpoint(last).eval()
    assert opened.describe()["methods"] == again["hyper_parameters"]["methods"]
    with torch.no_grad():
        short, long = (opened.encode_text(texts).pooled[0] for texts in (["a ring"], ["a ring", "a b c d e f g h"]))
    torch.testing.assert_close(short, long)  # an embedding does not depend on its batch


@pytest.mark.slow
def test_the_documented_method_works_in_separate_programs(scenes, features, tmp_path):
    """As a user would do it: a module on the path, two processes, and a checkpoint that another program loads."""
    page = (Path(itr.methods.__file__).parent / "README.md").read_text()
    shown = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert shown
    (tmp_path / "my_package.py").write_text(shown[1])
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])

    def run(*arguments: str, **more: str) -> None:
        variables = {**os.environ, "PYTHONPATH": path, **more}
        command = [sys.executable, "-m", "itr", *arguments]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr

    chosen = [*options(scenes, features, tmp_path, "CUSA"), "--model.methods+=my_package.Centred"]
    # Two processes fail on parameters without gradients, such as the heads whose output a later method discards.
    run("fit", *chosen, "--trainer.devices=2", "--data.batch_size=4", "--trainer.max_epochs=1")
    checkpoint, out = str(tmp_path / "checkpoints" / "last.ckpt"), tmp_path / "e.npz"
    run("embed", "--ckpt_path", checkpoint, "--data", str(scenes), "--out", str(out), ITR_IMPORT="my_package")
    with np.load(out) as found:
        assert {"image_unimodal", "text_unimodal"} <= set(found)


def test_a_disabled_method_leaves_the_baseline_bit_equal(scenes, tmp_path):
    """A method that is turned off changes neither weights nor random numbers."""
    quieten()
    found = []
    off = ["--model.methods+=CUSA", "--model.methods.alpha=0", "--model.methods.beta=0",
           "--model.methods.cross_head=false"]  # fmt: skip
    for number, chosen in enumerate(([], off)):
        fast = common(scenes, tmp_path / "none", tmp_path / str(number))
        cli = TrainingCLI([*fast, *chosen, "--trainer.max_epochs=1"], run=False)
        cli.trainer.fit(cli.model, cli.datamodule)
        found.append(cli.model.state_dict())
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("method", [CUSA, D2S])
def test_adding_it_twice_is_refused(method):
    from itr.backbones import VSE
    from itr.objectives import InfoNCE

    with pytest.raises(UserError, match="given twice"):
        RetrievalModule(VSE(), InfoNCE(), [method(), method()])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (METHODS["CUSA"], "itr features --data"),
        ([*SMALL_D2S, "--model.methods.stage1=gone.ckpt"], "gone.ckpt"),
        ([*SMALL_D2S, "--model.methods.cached=true"], "--modality dense"),
    ],
)
def test_missing_fields_are_reported_before_the_first_step(scenes, tmp_path, capsys, chosen, message):
    fast = [f"--data.root={scenes}", f"--trainer.default_root_dir={tmp_path}", "--trainer.accelerator=cpu"]
    fast.append("--data.batch_size=8")
    assert main(["fit", *fast, *TINY_VSE, *chosen]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists()
