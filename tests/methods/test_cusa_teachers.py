"""CUSA's teachers that run during training: the same loss as from files, and no trace in the model."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device

from itr.backbones.tokenizers import BPETokenizer, load_tokenizer
from itr.commands.quieten import quieten
from itr.data.shards.locations import find_split
from itr.data.shards.tars import read_tar
from itr.errors import UserError
from itr.passes.features import make_features
from itr.runs.command import TrainingCLI
from itr.teachers.base import Encoder, Teacher, by_length
from itr.teachers.load import load_teacher
from itr.types import HostTokens, Tokens
from tiny import TINY_VSE
from tiny_teachers import save_image_teacher, save_text_teacher


@pytest.fixture(scope="module")
def made(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two teachers and their features."""
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


@pytest.fixture(scope="module")
def taught(scenes: Path, made: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingCLI:
    """A model trained with a text teacher that ran during training."""
    return fitted(scenes, made, tmp_path_factory.mktemp("taught"), f"--model.methods.teachers.text={made / 'text'}")


@pytest.mark.slow
def test_online_teachers_give_the_losses_of_feature_files(scenes, made, tmp_path):
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


def test_copies_of_the_model_share_a_teacher(taught):
    module = taught.model
    twin = copy.deepcopy(module)
    assert twin.methods["cusa"].teachers["text"] is module.methods["cusa"].teachers["text"]


def test_a_teacher_keeps_its_precision_under_autocast(made):
    teacher = load_teacher("text", str(made / "text"))
    plain = teacher.features(["a red circle"])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(teacher.features(["a red circle"]), plain)
    weight = torch.ones(8, requires_grad=True)
    (teacher.features(["a red circle"]) * weight).sum().backward()  # no inference tensor
    assert torch.equal(weight.grad, plain[0])


LONG = ["a red circle", "", "a", "a red circle and a big blue square in the middle of it", "a blue square"] * 5


@pytest.mark.parametrize("size", [1, 4, 100])
def test_captions_of_similar_length_are_batched_together(made, size):
    tokens = load_tokenizer(str(made / "text"))(LONG)
    parts = list(by_length(tokens, size))
    assert sorted(row for index, _ in parts for row in index.tolist()) == list(range(len(LONG)))
    longest = [part.mask.sum(1).max().item() for _, part in parts]
    assert longest == sorted(longest) == [part.ids.shape[1] for _, part in parts]
    for index, part in parts:
        assert len(part) <= size
        assert torch.equal(part.ids, tokens.ids[index, : part.ids.shape[1]])
        assert not tokens.mask[index, part.ids.shape[1] :].any()


def test_a_caption_is_embedded_as_if_it_were_alone(made):
    teacher = load_teacher("text", str(made / "text"))
    alone = torch.cat([teacher.features([caption]) for caption in LONG])
    assert len({tuple(row.tolist()) for row in alone}) == 5
    assert torch.allclose(teacher.features(LONG), alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(teacher.features(teacher.tokenizer(LONG)), teacher.features(LONG))


def test_padding_that_affects_the_output_is_not_changed():
    seen = []

    def run(tokens: Tokens) -> torch.Tensor:
        seen.append(tokens.ids.shape[1])
        return tokens.ids[:, :2].float()

    tokenizer = BPETokenizer(max_length=9, full_length=True)
    teacher = Teacher(Encoder(torch.nn.Linear(1, 1), run, tokenizer=tokenizer), torch.device("cpu"))
    assert torch.equal(teacher.features(["a", "two words"]), tokenizer(["a", "two words"]).ids[:, :2].float())
    assert set(seen) == {9}


@pytest.mark.parametrize("modality", ["text", "image"])
def test_a_settled_teacher_gives_the_same_features(made, modality):
    shown = LONG if modality == "text" else torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
    teacher = load_teacher(modality, str(made / modality), precision="bf16")
    before = teacher.features(shown)
    assert not torch.equal(before, load_teacher(modality, str(made / modality)).features(shown))
    teacher.settle()
    linear = [layer for layer in teacher.encoder.module.modules() if isinstance(layer, torch.nn.Linear)]
    assert {layer.weight.dtype for layer in linear} == {torch.bfloat16}
    assert torch.equal(teacher.features(shown), before)


@pytest.mark.slow
def test_a_compiled_teacher_gives_the_same_features(made):
    teacher = load_teacher("text", str(made / "text"))
    before = teacher.features(LONG)
    teacher.settle(compiled=True)
    assert teacher.encoder.module._compiled_call_impl is not None
    assert torch.allclose(teacher.features(LONG), before, atol=1e-5)
    assert torch.allclose(teacher.features(LONG[:3]), before[:3], atol=1e-5)


def test_workers_tokenize_for_the_teacher_and_its_tokens_stay_on_the_host(taught):
    stream, teacher = taught.datamodule.train_stream, taught.model.methods["cusa"].teachers["text"]
    batch = next(iter(stream))
    tokens = batch.text_extra["teacher_tokens"]
    assert isinstance(tokens, HostTokens)
    assert torch.equal(teacher.features(tokens.tokens), teacher.features(batch.text_extra["captions"]))
    moved = move_data_to_device(batch, torch.device("meta"))
    assert moved.text.ids.device.type == "meta"
    assert moved.text_extra["teacher_tokens"].tokens.ids.device.type == "cpu"
    parts = batch.parts(4)
    assert len(parts) == 2
    joined = torch.cat([part.text_extra["teacher_tokens"].tokens.ids for part in parts])
    assert torch.equal(joined, tokens.tokens.ids)


def test_a_missing_teacher_is_reported_before_the_first_step(scenes, made, tmp_path):
    with pytest.raises(UserError, match=r"could not load teacher .*/nowhere"):
        fitted(scenes, made, tmp_path, "--model.methods.teachers.text=/nowhere")
