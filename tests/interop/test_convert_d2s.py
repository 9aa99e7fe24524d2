"""Official checkpoints of D2S-VSE: one in their layout is written from an itr model, and read back."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from itr.backbones import VSE
from itr.errors import UserError
from itr.interop.d2s import made_up_tokenizer, read_d2s_model
from itr.interop.d2s_names import text_config_of, vision_config_of
from itr.methods import D2S
from itr.module import RetrievalModule
from itr.objectives import Triplet
from itr.types import Tokens

VIT = {
    "model_type": "vit", "image_size": 32, "patch_size": 16, "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 1, "intermediate_size": 16,
}  # fmt: skip
SWIN = {
    "model_type": "swin", "image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 4],
    "window_size": 4, "mlp_ratio": 2.0,
}  # fmt: skip
BERT = {
    "model_type": "bert", "vocab_size": 40, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
    "intermediate_size": 16, "max_position_embeddings": 20,
}  # fmt: skip

TEXT = {
    "text_tower.": "bert.", "text_projection.": "fc.", "text_norm.": "ln.", "text_pool.": "gpool.",
    "text_mlp.hidden.": "mlp.layers.0.", "text_mlp.out.": "mlp.layers.1.", "text_mlp.norm.": "mlp.bns.0.",
}  # fmt: skip
OFFICIAL = {
    "backbone.vision_tower.": "img_enc.visual_encoder.",
    "backbone.image_projection.": "img_enc.image_encoder.fc.",
    "backbone.image_pool.": "img_enc.image_encoder.gpool.",
    **{f"backbone.{ours}": f"txt_enc.{theirs}" for ours, theirs in TEXT.items()},
    **{f"methods.d2s.teacher.encoder.{ours}": f"long_txt_enc.{theirs}" for ours, theirs in TEXT.items()},
    "methods.d2s.decoder.prompts": "prompt_learner.prompt_tokens",
    "methods.d2s.decoder.norm.": "prompt_learner.decoder_norm.",
    "methods.d2s.decoder.pool.": "prompt_learner.pooling.",
    "methods.d2s.decoder.blocks.": "prompt_learner.decoder_blocks.",
    "methods.d2s.decoder.attention.qkv.": "prompt_learner.cross_attn.in_proj_",
    "methods.d2s.decoder.attention.proj.": "prompt_learner.cross_attn.out_proj.",
}
VIT_4 = {"visual_encoder.layers.": "visual_encoder.encoder.layer.", "attention.q_proj": "attention.attention.query",
         "attention.k_proj": "attention.attention.key", "attention.v_proj": "attention.attention.value"}  # fmt: skip
SWIN_4 = {"attention.q_proj": "attention.self.query", "attention.k_proj": "attention.self.key",
          "attention.v_proj": "attention.self.value",
          "attention.relative_position_bias.": "attention.self."}  # fmt: skip
BOTH_4 = {"attention.o_proj": "attention.output.dense", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
BLOCKS = {".attention.": ".attn.", ".fc1.": ".mlp.fc1.", ".fc2.": ".mlp.fc2."}


def official_name(name: str, vision: str) -> str:
    prefix = next(prefix for prefix in OFFICIAL if name.startswith(prefix))
    theirs = OFFICIAL[prefix] + name.removeprefix(prefix)
    inner = {}
    if "visual_encoder" in theirs:
        inner = {**(VIT_4 if vision == "vit" else SWIN_4), **BOTH_4}
    elif "decoder_blocks" in theirs:
        inner = BLOCKS
    for old, new in inner.items():
        theirs = theirs.replace(old, new)
    return theirs


def options(**changes) -> dict:
    return {"margin": 0.2, "max_violation": True, "no_res_embed": True, "distill_loss": "cos", "loss": "vse", **changes}


def module_of(vision: dict, stage: int = 2, **knobs) -> RetrievalModule:
    torch.manual_seed(0)
    backbone = VSE(
        vision_config=vision, text_config=BERT, tokenizer_json=made_up_tokenizer(40, 20), dim=16, text_mlp=True,
        text_norm=True, resize="squash",
    )  # fmt: skip
    quirks = {"placement": "postfix", "positions": False, "attend_padding": True, "normalise_in_evaluation": True}
    sizes = {"num_prompts": 3, "depth": 2, "mlp_ratio": 2.0}
    methods = [D2S(**{**sizes, **quirks, **knobs})] if stage == 2 else []
    module = RetrievalModule(backbone, Triplet(), methods).eval()
    for parameter in module.parameters():  # the teacher differs from the student, norms and biases from 1 and 0
        parameter.data += 0.1 * torch.randn_like(parameter)
    return module


def write(module: RetrievalModule, path: Path, vision: str, prefix: str = "", best: float = 1.5, **changes) -> Path:
    state = {n: v for n, v in module.state_dict().items() if not n.startswith("objective.")}
    weights = {official_name(name, vision): value for name, value in state.items()}
    assert len(weights) == len(state)
    # What else the authors' files contain: unused heads, buffers and counters.
    for encoder in ("txt_enc", "long_txt_enc"):
        weights[f"{encoder}.bert.pooler.dense.weight"] = torch.zeros(64, 64)
        weights[f"{encoder}.bert.embeddings.position_ids"] = torch.arange(20)[None]
        weights[f"{encoder}.mlp.bns.0.num_batches_tracked"] = torch.tensor(3)
        weights[f"{encoder}.mlp.bns.1.running_mean"] = torch.zeros(16)
    if not module.methods:
        weights = {name: value for name, value in weights.items() if not name.startswith("long_")}
    weights["img_enc.visual_encoder.pooler.dense.weight"] = torch.zeros(1)
    if vision == "swin":
        name = "img_enc.visual_encoder.encoder.layers.0.blocks.0.attention.self.relative_position_index"
        weights[name] = torch.zeros(16, 16, dtype=torch.int64)
    content = {"model": {prefix + name: value for name, value in weights.items()}, "epoch": 3, "best_rsum": best,
               "Eiters": 12, "opt": argparse.Namespace(**options(**changes))}  # fmt: skip
    torch.save(content, path)
    return path


def embeddings(module: RetrievalModule) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=generator)
    ids = torch.tensor([[2, 7, 8, 9, 3], [2, 11, 3, 0, 0]])
    with torch.no_grad():
        found = [module.encode_image(image).pooled, module.encode_tokens(Tokens(ids, ids != 0)).pooled]
        teacher = getattr(module.methods["d2s"], "teacher", None) if "d2s" in module.methods else None
        return found if teacher is None else [*found, teacher(Tokens(ids, ids != 0))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("vision", "knobs", "changes"),
    [
        (VIT, {}, {}),
        (SWIN, {}, {}),
        (VIT, {"residual": False, "pooling": "gpo"}, {"no_res_embed": False, "gpo": True}),
        (SWIN, {"cross_attention": True, "heads": 8, "distillation": "l2"}, {"distill_loss": "l2"}),
    ],
    ids=["vit", "swin", "no residual, GPO", "cross-attention"],
)
def test_a_checkpoint_in_the_official_layout(tmp_path, vision, knobs, changes):
    module = module_of(vision, **knobs)
    path = write(
        module, tmp_path / "a.pth", vision["model_type"], "module._orig_mod." if knobs else "", np.float64(1), **changes
    )
    converted = read_d2s_model(path)
    assert converted.methods["d2s"].residual is knobs.get("residual", True)
    assert converted.methods["d2s"].distillation == knobs.get("distillation", "cosine")
    for found, expected in zip(embeddings(converted), embeddings(module), strict=True):
        assert torch.equal(found, expected)
    assert converted.backbone.image_spec.resize == "squash"


def test_sizes_are_read_from_the_shapes(tmp_path):
    for vision in (VIT, SWIN):
        path = write(module_of(vision), tmp_path / "a.pth", vision["model_type"])
        with torch.serialization.safe_globals([argparse.Namespace]):
            weights = torch.load(path, weights_only=True)["model"]
        assert vision_config_of(weights).items() >= vision.items()
        assert text_config_of(weights).items() >= BERT.items()


def test_a_first_stage_checkpoint_becomes_a_plain_backbone(tmp_path):
    module = module_of(VIT, stage=1)
    converted = read_d2s_model(write(module, tmp_path / "a.pth", "vit"))
    assert not converted.methods
    for found, expected in zip(embeddings(converted), embeddings(module), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.slow
def test_a_converted_model_loads_from_an_itr_checkpoint(tmp_path):
    converted = read_d2s_model(write(module_of(SWIN), tmp_path / "a.pth", "swin", img_res=32))
    checkpoint = {"state_dict": converted.state_dict(), "pytorch-lightning_version": "2.6.0"}
    converted.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "a.ckpt")
    opened = RetrievalModule.load_from_checkpoint(tmp_path / "a.ckpt").eval()
    for found, expected in zip(embeddings(opened), embeddings(converted), strict=True):
        assert torch.equal(found, expected)


class Runs:
    def __reduce__(self):
        return os.mkdir, ("never",)


def test_other_objects_are_never_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pth"
    torch.save({"model": {}, "opt": argparse.Namespace(), "more": Runs()}, path)
    with pytest.raises(UserError, match="could run code"):
        read_d2s_model(path)
    assert not (tmp_path / "never").exists()


def test_other_files_are_rejected(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_d2s_model(tmp_path / "a.pth")
    torch.save({"model": {}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="needs `model` and `opt`"):
        read_d2s_model(tmp_path / "a.pth")
    torch.save({"model": {}, "opt": argparse.Namespace()}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"fc\.weight is missing"):
        read_d2s_model(tmp_path / "a.pth")


def test_configs_of_other_sizes_are_rejected(tmp_path):
    path = write(module_of(VIT), tmp_path / "a.pth", "vit")
    with pytest.raises(UserError, match=r"of another shape: backbone\.vision_tower.*Pass the configs"):
        read_d2s_model(path, vision_config={**VIT, "intermediate_size": 8})


def test_the_authors_numbers(shared):
    from golden_d2s import check_d2s, check_distill

    folder = shared / "golden"
    for path in sorted(folder.glob("distill*.safetensors")):
        assert check_distill(path)[1], path.name
    for path in sorted(folder.glob("d2s_*.safetensors")):
        assert check_d2s(path)[1], path.name
