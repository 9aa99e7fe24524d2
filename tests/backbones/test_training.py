"""What of a tower is trained: its last blocks, or low-rank adapters, which merge into its weights."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from itr.backbones import CLIP, VSE, Backbone, Dual
from itr.backbones.towers.training import blocks_of, merge_adapters
from itr.cli import main
from itr.errors import UserError
from itr.interop.convert import save_converted
from itr.module import RetrievalModule
from itr.objectives import InfoNCE
from tiny import TINY_CLIP, TINY_VSE
from tiny_duals import DUALS

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
VIT: dict[str, Any] = {"model_type": "vit", "image_size": 32, "patch_size": 16, **SIZES}
BERT: dict[str, Any] = {"model_type": "bert", "max_position_embeddings": 24, **SIZES}
RESNET: dict[str, Any] = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
STILL: dict[str, Any] = {"word_mask": 0.0, "visual_token_drop": 0.0, "dim": 8, "text_config": BERT}
OPEN_CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
KINDS: dict[str, tuple[type[Backbone], dict[str, Any]]] = {
    "VSE": (VSE, {"vision_config": VIT, **STILL}),
    "VSE of convolutions": (VSE, {"vision_config": RESNET, **STILL, "image_size": 64}),
    "CLIP": (CLIP, {"config": OPEN_CLIP}),
    "CLIP with a text tower of its own": (CLIP, {"config": {**OPEN_CLIP, "custom_text": True}}),
    "Dual": (Dual, {"config": DUALS["siglip"]}),
    "Dual with projections": (Dual, {"config": DUALS["clip"]}),
    "Dual of convolutions": (Dual, {"config": DUALS["align"]}),
}
SIDES = [{"vision_lora": 2}, {"text_lora": 3}, {"vision_lora": 2, "text_lora": 3}]


def make(kind: str, **arguments: Any) -> Backbone:
    backbone, own = KINDS[kind]
    torch.manual_seed(0)
    return backbone(**own, **arguments)


def embeddings(model: Backbone) -> tuple[Tensor, Tensor]:
    size = model.image_spec.size
    pixels = torch.arange(2 * 3 * size * size).view(2, 3, size, size) % 251
    return model.encode_image(pixels.to(torch.uint8)).pooled, model.encode_text(model.tokenizer(["a dog", "x"])).pooled


def trained(model: Backbone) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def move_adapters(model: Backbone) -> None:
    """As training does: B is no longer zero."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)


@pytest.mark.parametrize("ranks", SIDES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_change_nothing_at_first_and_are_all_of_the_tower_that_is_trained(kind, ranks):
    plain, model = make(kind).eval(), make(kind, **ranks)
    for own, expected in zip(embeddings(model.eval()), embeddings(plain), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)
    adapters = [name for name in trained(model) if "lora_" in name]
    others = [name.replace(".base_layer", "") for name in trained(model) if "lora_" not in name]
    vision = ("vision_tower.", "model.visual.", "model.vision_model.", "model.visual_projection.")
    for side, parts in (("vision_lora", [n for n in adapters if n.startswith(vision)]),
                        ("text_lora", [n for n in adapters if not n.startswith(vision)])):  # fmt: skip
        assert bool(parts) == (side in ranks)

    def adapted(name: str) -> bool:
        return plain.is_tower(name) and ("vision_lora" if name.startswith(vision) else "text_lora") in ranks

    assert others == [name for name in trained(plain) if not adapted(name)]
    torch.stack([side.square().sum() for side in embeddings(model.train())]).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("kind", KINDS)
def test_merged_adapters_give_the_same_embeddings_and_the_names_of_a_plain_tower(kind):
    model, plain = make(kind, vision_lora=2, text_lora=3).eval(), make(kind).eval()
    move_adapters(model)
    with torch.no_grad():
        before = embeddings(model)
        assert not torch.allclose(before[0], embeddings(plain)[0], atol=1e-3)
        assert merge_adapters(model) > 0
        plain.load_state_dict(model.state_dict())
        for merged in (model, plain):
            for own, expected in zip(embeddings(merged), before, strict=True):
                torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
    assert merge_adapters(model) == 0


@pytest.mark.parametrize("kind", ["VSE", "CLIP", "Dual"])
def test_a_checkpoint_with_adapters_is_opened_and_merged(kind, tmp_path, monkeypatch):
    module = RetrievalModule(make(kind, vision_lora=2, text_lora=2), InfoNCE())
    move_adapters(module.backbone)
    path = tmp_path / "last.ckpt"
    save_converted(module, path)
    assert main(["convert", "lora", str(path), "--out", str(tmp_path / "merged.ckpt")]) == 0
    again = RetrievalModule.load_from_checkpoint(path).eval()
    monkeypatch.setitem(sys.modules, "peft", None)  # not installed where the merged checkpoint is used
    merged = RetrievalModule.load_from_checkpoint(tmp_path / "merged.ckpt").eval()
    assert not [name for name in merged.state_dict() if "lora" in name]
    with torch.no_grad():
        expected = embeddings(module.backbone.eval())
        for opened, tolerance in ((again, 1e-6), (merged, 1e-5)):
            for own, other in zip(embeddings(opened.backbone), expected, strict=True):
                torch.testing.assert_close(own, other, rtol=10 * tolerance, atol=tolerance)


def test_a_checkpoint_without_adapters_is_not_converted(plain_checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)  # as for a user who has no such runs
    assert main(["convert", "lora", plain_checkpoint, "--out", str(tmp_path / "merged.ckpt")]) == 1
    assert "has no low-rank adapters to merge" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vision_lora": 0}, "vision_lora=0 must be at least 1"),
        ({"freeze_vision": True, "vision_lora": 2}, "vision_lora adapts the layers that are trained, but all"),
        ({"freeze_text": 4}, "freeze_text=4 must be true, false, or a number of blocks .* from 1 to 3"),
        ({"freeze_text": 0}, "freeze_text=0 must be"),
    ],
)
def test_impossible_choices_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        make("VSE", **arguments)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"vision_lora needs peft: `pip install itr\[lora\]`"):
        make("VSE", vision_lora=2)


@pytest.mark.parametrize("kind", ["VSE", "VSE of convolutions"])
def test_the_last_blocks_of_a_tower_are_trained(kind):
    model, plain = make(kind, freeze_vision=1, freeze_text=2), make(kind)
    assert not model.vision_tower.training  # before anything calls `train`
    model.train()
    frozen = [name for name in trained(plain) if name not in trained(model)]
    text = [name for name in frozen if name.startswith("text_tower.")]
    assert all(name.startswith(("text_tower.embeddings.", "text_tower.encoder.layer.0.")) for name in text)
    blocks = blocks_of(model.vision_tower)
    assert len(blocks) == (3 if kind == "VSE" else 2)
    assert all(p.requires_grad for p in blocks[-1].parameters())
    assert not any(p.requires_grad for block in blocks[:-1] for p in block.parameters())
    assert not model.vision_tower.training
    assert not model.text_tower.training
    assert model.frozen_sides() == ()
    torch.stack([side.square().sum() for side in embeddings(model)]).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_a_run_with_adapters_starts_from_plain_weights(tmp_path):
    module, path = RetrievalModule(make("CLIP"), InfoNCE()), tmp_path / "last.ckpt"
    torch.nn.init.normal_(module.backbone.get_parameter("model.visual.proj"))
    save_converted(module, path)
    started = RetrievalModule(make("CLIP", vision_lora=2), InfoNCE(), weights=str(path))
    with torch.no_grad():
        expected = embeddings(module.backbone.eval())
        for own, other in zip(embeddings(started.backbone.eval()), expected, strict=True):
            torch.testing.assert_close(own, other)


@pytest.mark.slow
@pytest.mark.parametrize("tiny", [TINY_VSE, TINY_CLIP], ids=["VSE", "CLIP"])
def test_training_with_adapters_resumes_to_the_same_weights(scenes, tmp_path, tiny):
    def fit(folder: str, *more: str) -> dict[str, Tensor]:
        where = [f"--data.root={scenes}", f"--trainer.default_root_dir={tmp_path / folder}", "--data.num_workers=0"]
        ranks = ["--model.backbone.vision_lora=2", "--model.backbone.text_lora=2", "--model.optimizer.lr=0.01"]
        ranks += ["--model.optimizer.schedule=constant", "--model.optimizer.warmup=0"]
        assert main(["fit", *tiny, *ranks, *where, "--data.batch_size=8", *more]) == 0
        state = torch.load(tmp_path / folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        return dict(state)

    whole = fit("whole", "--trainer.max_epochs=2")
    fit("parts", "--trainer.max_epochs=2", "--trainer.max_steps=7")
    parts = fit("parts", "--trainer.max_epochs=2", "--trainer.max_steps=-1", "--ckpt_path=last")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    moved = [name for name in whole if "lora_B" in name and whole[name].abs().max() > 0]
    assert len(moved) == len([name for name in whole if "lora_B" in name]) >= 8
