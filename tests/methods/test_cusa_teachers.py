"""CUSA's teachers that run in the loop: the same loss as from files, nothing of them in the model."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from itr.data.locations import find_split
from itr.data.make_features import make_features
from itr.data.tars import read_tar
from itr.errors import UserError
from itr.training_cli import TrainingCLI, quieten
from tiny import TINY_VSE
from tiny_teachers import save_image_teacher, save_text_teacher


@pytest.fixture(scope="module")
def made(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two teachers, and the features that they give."""
    folder = tmp_path_factory.mktemp("teachers")
    samples = [s for shard in find_split(scenes, "train").shards for s in read_tar(shard.place)]
    text = save_text_teacher(folder / "text", [caption for s in samples for caption in s.captions])
    image = save_image_teacher(folder / "image")
    for modality, model in (("text", text), ("image", image)):
        make_features(str(scenes), modality, str(folder), model, num_workers=0)
    return folder


def fitted(scenes: Path, made: Path, folder: Path, *chosen: str) -> TrainingCLI:
    quieten()
    fast = [f"--data.root={scenes}", f"--data.features={made}", "--data.batch_size=8", "--data.captions=2"]
    fast += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.logger=false"]
    fast += [f"--trainer.default_root_dir={folder}", "--trainer.max_epochs=1", "--data.num_workers=1"]
    cli = TrainingCLI([*fast, *TINY_VSE, "--model.methods+=CUSA", *chosen], run=False)
    cli.trainer.fit(cli.model, cli.datamodule)
    return cli


@pytest.mark.slow
def test_in_the_loop_is_what_the_files_say(scenes, made, tmp_path):
    terms = []
    for sides in ((), ("text",), ("image",), ("text", "image")):
        chosen = [f"--model.methods.teachers.{side}={made / side}" for side in sides]
        cli = fitted(scenes, made, tmp_path / "-".join(("run", *sides)), *chosen)
        terms.append({name: float(value) for name, value in cli.trainer.callback_metrics.items() if "train" in name})
        assert sorted(cli.model.methods["cusa"].teachers) == sorted(sides)
        assert not [name for name in cli.model.state_dict() if "teacher" in name]
    assert {"train/cusa/csa", "train/cusa/usa"} <= set(terms[0])
    for other in terms[1:]:  # the files are in half precision
        assert other == pytest.approx(terms[0], rel=1e-4)


def test_copies_of_the_model_share_a_teacher(scenes, made, tmp_path):
    module = fitted(scenes, made, tmp_path, f"--model.methods.teachers.text={made / 'text'}").model
    twin = copy.deepcopy(module)
    assert twin.methods["cusa"].teachers["text"] is module.methods["cusa"].teachers["text"]


def test_a_teacher_keeps_its_precision_under_autocast(made):
    from itr.data.teachers import load_teacher

    teacher = load_teacher("text", str(made / "text"))
    plain = teacher.features(["a red circle"])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(teacher.features(["a red circle"]), plain)
    weight = torch.ones(8, requires_grad=True)
    (teacher.features(["a red circle"]) * weight).sum().backward()  # no inference tensor
    assert torch.equal(weight.grad, plain[0])


def test_a_teacher_that_cannot_be_had_is_told_before_the_first_step(scenes, made, tmp_path):
    with pytest.raises(UserError, match="/nowhere can't be had"):
        fitted(scenes, made, tmp_path, "--model.methods.teachers.text=/nowhere")
