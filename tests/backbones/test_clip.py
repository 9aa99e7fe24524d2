"""CLIP: the same embeddings as open_clip, token features, freezing, descriptions, messages."""

from __future__ import annotations

import functools
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from itr.backbones import CLIP
from itr.backbones.towers.clip_loading import build_clip
from itr.errors import UserError
from tiny import copy_of

TEXT: dict[str, Any] = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "clip": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT},
    "clipa": {
        "embed_dim": 24,
        "vision_cfg": {**VISION, "pool_type": "avg", "final_ln_after_pool": True},
        "text_cfg": {**TEXT, "no_causal_mask": True, "pool_type": "last"},
    },
    "resnet": {"embed_dim": 24, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}, "text_cfg": TEXT},
    "siglip": {
        "embed_dim": 192,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {
            "image_size": 32, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map", "timm_proj": "none",
        },
        "text_cfg": {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    },
    "convnext": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {"image_size": 64, "timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "linear"},
        "text_cfg": TEXT,
    },
    "coca": {
        "embed_dim": 24,
        "custom_text": True,
        "multimodal_cfg": {"context_length": 76, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1},
        "vision_cfg": {
            **VISION, "attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 6, "output_tokens": True,
        },
        "text_cfg": {**TEXT, "context_length": 76, "embed_cls": True, "output_tokens": True},
    },
}  # fmt: skip
NUM_TOKENS = {"clip": 17, "clipa": 16, "resnet": 2, "siglip": 5, "convnext": 4, "coca": 6}
FULL_LENGTH = {"clipa", "siglip", "coca"}
CAPTIONS = ["a dog runs", "a cat sits on the mat and looks!", ""]


def make(name: str = "clip", **arguments: Any) -> CLIP:
    torch.manual_seed(0)
    return CLIP(config=CONFIGS[name], **arguments) if arguments else copy_of(first(name))


@functools.cache
def first(name: str) -> CLIP:
    return CLIP(config=CONFIGS[name])


def images(model: CLIP) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 256, (2, 3, model.image_spec.size, model.image_spec.size), dtype=torch.uint8)


def pooled(model: CLIP) -> tuple[Tensor, Tensor]:
    return model.encode_image(images(model)).pooled, model.encode_text(model.tokenizer(CAPTIONS)).pooled


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_pooled_embeddings_equal_open_clip(name: str) -> None:
    model = make(name).eval()
    reference: Any = build_clip(CONFIGS[name], None, None).eval()
    reference.load_state_dict(model.model.state_dict(), strict=False)
    length = model.tokenizer.max_length

    image = model.encode_image(images(model))
    text = model.encode_text(model.tokenizer(CAPTIONS))
    ids = SimpleTokenizer()(CAPTIONS, context_length=length)

    expected = reference.encode_image(model.normalise(images(model)), normalize=False)
    torch.testing.assert_close(image.pooled, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(text.pooled, reference.encode_text(ids, normalize=False), rtol=1e-4, atol=1e-5)
    assert image.tokens.shape == (2, NUM_TOKENS[name], model.dim)
    assert text.tokens.shape == (3, length if name in FULL_LENGTH else 11, model.dim)
    assert text.mask.sum(1).tolist() == [5, 11, 2]


@torch.no_grad()
def test_the_pooled_token_is_among_the_tokens() -> None:
    model = make().eval()
    image, text = model.encode_image(images(model)), model.encode_text(model.tokenizer(CAPTIONS))

    torch.testing.assert_close(image.tokens[:, 0], image.pooled)
    end = text.mask.sum(1) - 1
    torch.testing.assert_close(text.tokens[torch.arange(3), end], text.pooled)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_trained_parameter_gets_a_gradient(name: str) -> None:
    model = make(name).train()

    torch.stack([side.square().sum() for side in pooled(model)]).sum().backward()

    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not [name for name in model.state_dict() if "logit" in name or "decoder" in name]


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_a_description_rebuilds_the_model(name: str) -> None:
    model = make(name, image_size=64 if name in ("clip", "siglip") else None).eval()
    stream = io.BytesIO()
    torch.save({"backbone": model.describe(), "weights": model.state_dict()}, stream)
    stream.seek(0)
    saved = torch.load(stream, weights_only=True)

    again = CLIP(**saved["backbone"]["init_args"]).eval()
    again.load_state_dict(saved["weights"], strict=True)

    assert again.describe() == model.describe()
    for left, right in zip(pooled(model), pooled(again), strict=True):
        assert torch.equal(left, right)


def test_default_is_small_and_random() -> None:
    model = CLIP()

    image, text = pooled(model)
    assert image.shape == (2, 128)
    assert text.shape == (3, 128)
    assert model.image_spec.size == 64
    assert model.pretrained_temperature is None
    assert model.untrained == ("CLIP",)


def test_a_text_tower_of_transformers(tmp_path: Path, tokenizer_json: str) -> None:
    roberta = {
        "model_type": "roberta", "vocab_size": 17, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 40, "pad_token_id": 0,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(roberta))
    (tmp_path / "tokenizer.json").write_text(tokenizer_json)
    text = {"hf_model_name": str(tmp_path), "hf_tokenizer_name": str(tmp_path / "tokenizer.json"), "context_length": 20}
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": {**text, "hf_proj_type": "mlp"}}
    model = CLIP(config=config).eval()
    shutil.rmtree(tmp_path)

    again = CLIP(**model.describe()["init_args"]).eval()
    again.load_state_dict(model.state_dict(), strict=True)

    with torch.no_grad():
        together = model.encode_text(model.tokenizer(CAPTIONS))
        alone = again.encode_text(again.tokenizer(CAPTIONS[:1]))
    assert again.tokenizer.max_length == 20
    torch.testing.assert_close(alone.pooled[0], together.pooled[0], rtol=1e-4, atol=1e-5)


def test_local_weights(tmp_path: Path) -> None:
    source: Any = build_clip(CONFIGS["siglip"], None, None)
    source.logit_scale.data.fill_(math.log(20.0))
    path = tmp_path / "weights.pt"
    torch.save(source.state_dict(), path)

    model = make("siglip", pretrained=str(path))

    assert model.pretrained_temperature == pytest.approx(0.05)
    assert model.pretrained_bias == -10
    assert torch.equal(model.model.get_parameter("visual.trunk.cls_token"), source.visual.trunk.cls_token)
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"could not read the weights in .*weights\.pt: Unsupported operand"):
        make("siglip", pretrained=str(path))


def test_a_local_folder(tmp_path: Path) -> None:
    source = build_clip(CONFIGS["clip"], None, None)
    torch.save(source.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    facts = {"mean": [0.5, 0.5, 0.5], "std": [0.4, 0.4, 0.4], "resize_mode": "squash", "interpolation": "bilinear"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIGS["clip"], "preprocess_cfg": facts}))

    model = CLIP(model=f"local-dir:{tmp_path}")
    again = CLIP(**model.describe()["init_args"])

    assert again.image_spec == model.image_spec
    assert (again.image_spec.mean, again.image_spec.resize) == ((0.5, 0.5, 0.5), "squash")
    assert again.image_spec.interpolation == "bilinear"


def test_freezing() -> None:
    model = make("resnet", freeze=["visual.layer1", "text"]).train()

    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        name for name, _ in model.named_parameters() if name.startswith("model.visual.layer1.") or "visual" not in name
    }
    training = {name: module.training for name, module in model.model.named_modules()}
    assert not training["visual.layer1.0.bn1"]
    assert training["visual.layer2.0.bn1"]
    assert not training["transformer"]


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients = []
    for frugal in (False, True):
        model = make(gradient_checkpointing=frugal).train()
        torch.stack([side.square().sum() for side in pooled(model)]).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})

    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_bfloat16_autocast(name: str) -> None:
    model = make(name).train()

    with torch.autocast("cpu", torch.bfloat16):
        image, text = pooled(model)
    (image.float().sum() + text.float().sum()).backward()

    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "ViT-B-23"}, "no model 'ViT-B-23'; did you mean 'ViT-B-32'"),
        ({"model": "ViT-B-32", "pretrained": "opanai"}, "'opanai' is neither a file nor a tag.*did you mean 'openai'"),
        (
            {"model": "ViT-B-32", "pretrained": "openai"},
            "could not download pretrained='openai' of ViT-B-32.*random weights",
        ),
        ({"model": "ViT-B-32", "config": CONFIGS["clip"]}, "set model or config, not both"),
        ({"model": "local-dir:nowhere"}, "could not load model 'local-dir:nowhere'"),
        ({"model": "hf-hub:no/such"}, "could not load model 'hf-hub:no/such'"),
        ({"config": CONFIGS["clip"], "pretrained": "openai"}, "'openai': the file does not exist"),
        (
            {"config": CONFIGS["clip"], "freeze": ["visuals"]},
            "no parameter name starts with 'visuals'; did you mean 'visual'",
        ),
        ({"config": {**CONFIGS["clip"], "quickgelu": True}}, "unknown setting 'quickgelu'; did you mean 'quick_gelu'"),
        ({"config": {"embed_dim": 8, "vision_cfg": VISION}}, "text_cfg is missing"),
        ({"config": {**CONFIGS["clip"], "text_cfg": {**TEXT, "vocab_size": 9}}}, "vocab_size 9 is too small"),
        (
            {"config": {**CONFIGS["siglip"], "vision_cfg": {"timm_model_name": "vit_none"}}},
            "could not build a CLIP.*vit_none",
        ),
    ],
)
@pytest.mark.usefixtures("offline")
def test_messages(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CLIP(**arguments)


def test_openai_weights_keep_their_activation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from itr.backbones.towers import clip_loading

    path = str(tmp_path / "weights.pt")
    monkeypatch.setattr(open_clip, "download_pretrained", lambda facts: path)  # the only step that needs network access

    assert clip_loading.find_clip_source("ViT-B-32", "openai", None).config["quick_gelu"] is True
    assert clip_loading.find_clip_source("ViT-B-32", "laion2b_s34b_b79k", None).config["quick_gelu"] is False
    siglip = clip_loading.find_clip_source("ViT-B-16-SigLIP", "webli", None)
    assert siglip.preprocess["resize_mode"] == "squash"


def test_normalizing_does_not_change_the_input_and_returns_channels_last() -> None:
    model = make()
    spec = model.image_spec
    mean, std = (255 * torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    for image in (torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8), 255 * torch.rand(2, 3, 8, 8)):
        kept = image.clone()
        pixels = model.normalise(image)
        assert torch.equal(pixels, (image.float() - mean) / std)
        assert pixels.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(image, kept)


@pytest.mark.usefixtures("offline")
def test_named_text_towers_need_no_network(
    monkeypatch: pytest.MonkeyPatch, tokenizer_json: str, tmp_path: Path
) -> None:
    from itr.backbones.towers import clip_configs

    (tmp_path / "tokenizer.json").write_text(tokenizer_json)
    shrunk = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    nllb = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    for name, pooler in (("xlm-roberta-base", "mean_pooler"), ("facebook/nllb-200-distilled-600M", "cls_pooler")):
        small = {**clip_configs.TEXT_CONFIGS[name], **(nllb if "nllb" in name else shrunk), "vocab_size": 99}
        monkeypatch.setitem(clip_configs.TEXT_CONFIGS, name, small)
        text = {"hf_model_name": name, "hf_tokenizer_name": name, "hf_pooler_type": pooler}
        config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": text}

        model = CLIP(config=config, tokenizer=str(tmp_path / "tokenizer.json")).eval()
        again = CLIP(**model.describe()["init_args"]).eval()
        again.load_state_dict(model.state_dict(), strict=True)

        with torch.no_grad():
            together = model.encode_text(model.tokenizer(CAPTIONS))
            alone = again.encode_text(again.tokenizer(CAPTIONS[:1]))
        torch.testing.assert_close(alone.pooled[0], together.pooled[0], rtol=1e-4, atol=1e-5)
        with pytest.raises(UserError, match=f"could not load tokenizer '{name}'"):
            CLIP(config=config)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("roberta-ViT-B-32", 212.72), ("xlm-roberta-base-ViT-B-32", 366.12), ("nllb-clip-base", 501.89),
     ("xlm-roberta-large-ViT-H-14", 1193.01), ("nllb-clip-large", 1399.22)],
)  # fmt: skip
@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_named_text_towers_have_the_published_size(name: str, millions: float) -> None:
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        model = build_clip(config, None, None)

    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
