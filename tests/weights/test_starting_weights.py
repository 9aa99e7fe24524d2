"""`model.weights`: a new run starts from the weights of an itr checkpoint, and from nothing else of it."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from itr.backbones import CLIP, VSE
from itr.checkpoints import open_checkpoint
from itr.cli import main
from itr.errors import UserError
from itr.interop.convert import save_converted
from itr.interop.d2s import made_up_tokenizer
from itr.methods.cusa import CUSA
from itr.methods.d2s import D2S
from itr.methods.d2s_teacher import load_stage1
from itr.module import RetrievalModule
from itr.objectives import InfoNCE, Triplet
from itr.weights.reading import read_checkpoint, read_weights
from tiny_teachers import SIZE
from training_runs import checkpoint, options
from weight_files import TINY_CLIP_CONFIG

VISION = {"model_type": "vit", "image_size": 16, "patch_size": 8, **SIZE}
WORDS = made_up_tokenizer(40, 20)
TEXT = {"model_type": "bert", "pad_token_id": None, **SIZE}


def make(seed: int, objective: Any = None, methods: Any = (), weights: Path | None = None, **settings: Any) -> Any:
    torch.manual_seed(seed)
    arguments = {
        "vision_config": VISION,
        "text_config": TEXT,
        "dim": 8,
        "tokenizer_json": WORDS,
        **settings,
    }
    return RetrievalModule(
        VSE(**arguments), objective or InfoNCE(), methods, weights=None if weights is None else str(weights)
    )


def saved(module: Any, folder: Path) -> Path:
    save_converted(module, folder / "checkpoints" / "best.ckpt")
    return folder


def damage(file: Path) -> None:
    """Flip one bit of the weights."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def same(one: Any, two: Any) -> bool:
    two = two.state_dict()
    return all(torch.equal(value, two[name]) for name, value in one.state_dict().items())


def test_all_weights_of_an_equal_model_are_taken_from_a_run_folder_or_file(tmp_path: Path) -> None:
    first = make(0, InfoNCE(0.05), [CUSA()])
    first.objective.temperature.value.data.fill_(0.06)
    folder = saved(first, tmp_path)

    for place in (folder, folder / "checkpoints", folder / "checkpoints" / "best.ckpt"):
        second = make(1, InfoNCE(0.05), [CUSA()], weights=place)
        assert same(first, second)
        assert second.backbone.untrained == ()
    assert "weights" not in second.describe()


def test_the_best_checkpoint_of_a_run_is_taken_first(tmp_path: Path) -> None:
    best, last = make(0), make(1)
    saved(best, tmp_path)
    save_converted(last, tmp_path / "checkpoints" / "last.ckpt")

    assert same(best, make(2, weights=tmp_path))
    (tmp_path / "checkpoints" / "best.ckpt").unlink()
    assert same(last, make(2, weights=tmp_path))


def test_what_starts_fresh_and_what_is_not_used_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = saved(make(0, methods=[CUSA()]), tmp_path)

    with caplog.at_level(logging.INFO):
        make(1, Triplet(), [D2S(num_prompts=2, heads=2)], weights=folder)
        module = make(1, InfoNCE(0.02), weights=folder)

    assert "backbone; with initial values: objective, d2s; not used: cusa" in caplog.text
    assert module.objective.temperature.value.item() == pytest.approx(0.02)


def test_the_teacher_of_d2s_is_a_copy_of_the_weights_that_the_run_starts_from(tmp_path: Path) -> None:
    first = make(0)

    second = make(1, methods=[D2S(num_prompts=2, heads=2)], weights=saved(first, tmp_path))

    assert same(first.backbone.text_tower, second.methods["d2s"].teacher.encoder.text_tower)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 12}, r"of another shape: image_projection\.bias \(\[8\] instead of \[12\]\)"),
        ({"text_norm": True}, r"missing: text_norm\.bias, text_norm\.weight"),
        ({"vision_config": {**VISION, "num_hidden_layers": 2}}, r"missing: vision_tower\.layers\.1"),
        ({"text_config": {**TEXT, "hidden_act": "relu"}}, r"text_config\.hidden_act gelu, and this run has relu"),
        ({"vision_config": {**VISION, "num_attention_heads": 1}}, r"vision_config\.num_attention_heads 2"),
    ],
)
def test_another_backbone_is_refused(tmp_path: Path, settings: Any, message: str) -> None:
    folder = saved(make(0), tmp_path)

    with pytest.raises(UserError, match=f"{message}.*RUN/config.yaml"):
        make(1, weights=folder, **settings)


def test_weights_that_belong_to_no_part_of_a_model_are_refused(tmp_path: Path) -> None:
    folder = saved(make(0), tmp_path)
    file = next(Path(folder).rglob("*.ckpt"))
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["state_dict"]["head.weight"] = torch.zeros(2)
    torch.save(checkpoint, file)

    with pytest.raises(UserError, match=r"do not match an itr checkpoint; unexpected: head\.weight"):
        make(1, weights=folder)


def test_another_activation_of_clip_is_refused(tmp_path: Path) -> None:
    folder = saved(RetrievalModule(CLIP(config=TINY_CLIP_CONFIG, quick_gelu=True), InfoNCE()), tmp_path)

    RetrievalModule(CLIP(config=TINY_CLIP_CONFIG, quick_gelu=True), InfoNCE(), weights=str(folder))
    with pytest.raises(UserError, match=r"config\.quick_gelu True, and this run has False"):
        RetrievalModule(CLIP(config=TINY_CLIP_CONFIG), InfoNCE(), weights=str(folder))


def test_settings_that_may_differ_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = saved(make(0), tmp_path)

    make(1, weights=folder, image_mean=(0.1, 0.2, 0.3), word_dropout=0.1, freeze_text=True)

    assert "that differ" in caplog.text
    assert "image_mean [0.485, 0.456, 0.406] -> [0.1, 0.2, 0.3]" in caplog.text
    assert "word_dropout" not in caplog.text


def test_a_method_of_other_sizes_is_refused(tmp_path: Path) -> None:
    folder = saved(make(0, methods=[D2S(num_prompts=2, heads=2)]), tmp_path)

    with pytest.raises(UserError, match=r"the method d2s; of another shape: decoder\.prompts"):
        make(1, methods=[D2S(num_prompts=3, heads=2)], weights=folder)
    with pytest.raises(UserError, match=r"both model\.weights and d2s set the weights of the backbone"):
        make(1, methods=[D2S(stage1="x.ckpt", num_prompts=2, heads=2)], weights=folder)


@pytest.mark.parametrize("kind", ["none", "empty", "damaged", "tower"])
def test_places_without_an_intact_checkpoint_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run"
    messages = {
        "none": "neither a checkpoint nor a run folder", "empty": "has no checkpoint; expected .*best.ckpt",
        "damaged": r"best\.ckpt: it is damaged", "tower": "has no backbone .*a.weight.*pretrained FILE",
    }  # fmt: skip
    if kind == "empty":
        path.mkdir()
    elif kind == "damaged":
        damage(saved(make(0), path) / "checkpoints" / "best.ckpt")
    elif kind == "tower":
        path = tmp_path / "w.pt"
        torch.save({"a.weight": torch.zeros(1)}, path)

    with pytest.raises(UserError, match=messages[kind]):
        make(1, weights=path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "read",
    [read_weights, read_checkpoint, lambda path: open_checkpoint(str(path)),
     lambda path: load_stage1(make(1).backbone, path)],
)  # fmt: skip
def test_a_flipped_bit_in_weights_is_refused_wherever_they_are_read(tmp_path: Path, read: Any) -> None:
    file = saved(make(0), tmp_path) / "checkpoints" / "best.ckpt"
    read(file)
    damage(file)

    with pytest.raises(UserError, match=r"best\.ckpt: it is damaged \("):
        read(file)


def test_starting_and_resuming_at_once_is_refused(
    tmp_path: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [f"--model.weights={tmp_path}", "--ckpt_path=last"]

    assert main(options(scenes, tmp_path / "run", *more)) == 1
    assert "--model.weights starts a new run, and --ckpt_path last resumes one" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_from_weights_is_a_run_of_its_own(tmp_path: Path, scenes: Path) -> None:
    once = ["--trainer.max_epochs=1", "--data.num_workers=0"]
    assert main(options(scenes, tmp_path / "one", *once)) == 0
    still = [*once, "--trainer.limit_train_batches=1", "--model.optimizer.lr=1e-30"]
    arguments = options(scenes, tmp_path / "two", *still, f"--model.weights={tmp_path / 'one'}")

    assert main(arguments) == 0

    one, two = checkpoint(tmp_path / "one", "best"), checkpoint(tmp_path / "two")
    assert two["global_step"] == 1
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value)
    shutil.rmtree(tmp_path / "one")
    assert "weights" not in two["hyper_parameters"]
    opened = RetrievalModule.load_from_checkpoint(tmp_path / "two" / "checkpoints" / "last.ckpt")
    assert torch.equal(opened.state_dict()["backbone.image_projection.weight"],
                       two["state_dict"]["backbone.image_projection.weight"])  # fmt: skip
    again = ["fit", "--config", str(tmp_path / "two" / "config.yaml"), "--ckpt_path=last", "--trainer.max_epochs=2"]
    assert main(again) == 0  # the weights are no longer needed
    assert checkpoint(tmp_path / "two")["global_step"] == 2
    assert main(["test", "--config", str(tmp_path / "two" / "config.yaml")]) == 0
    assert "test/rsum" in json.loads((tmp_path / "two" / "metrics.json").read_text())
