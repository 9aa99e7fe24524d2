"""A checkpoint in the layout of CUSA's authors becomes an itr checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import golden
from itr.backbones import CLIP
from itr.cli import main as itr
from itr.errors import UserError
from itr.interop import convert as command
from itr.interop.cusa import clip_config, from_loss_config, parameter_name, read_cusa_model
from itr.methods import CUSA
from itr.methods.cusa_temperatures import Temperatures
from itr.module import RetrievalModule
from itr.objectives import InfoNCE

CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def taus(kind: str, value: float, low: float, high: float) -> dict[str, float]:
    names = {"": value, "_min": low, "_max": high}
    return {f"{kind}{side}_tau{end}": v for side in ("image", "text") for end, v in names.items()}


def loss_config(cross: dict, uni: dict, contrastive: dict) -> dict:
    tau = {"tau": 0.05, "tau_min": 0.01, "tau_max": 0.1}
    first = {"is_on": True, "is_block_tau": False, "rate": 1.0, "contrastive_loss_mode": "mean", **tau}
    both = {"is_on": True, "is_block_tau": False, "use_loss": "kl", "contrastive_loss_mode": "mean"}
    both |= {"is_block_softlabel_tau": True, **taus("the_softlabel_", 1.0, 0.1, 1.0)}
    own_cross = {"use_same_tau": True, "rate": 0.1, "cross_softlabel_mode": "each", "use_same_softlabel_tau": True}
    own_uni = {"use_same_tau": False, "rate": 0.5, "use_same_softlabel_tau": False}
    own_uni |= {"use_cross_softlabel_same_tau": False, "use_cross_softlabel_same_softlabel_tau": True}
    return {
        "contrastive": first | contrastive,
        "cross_softlabel": both | own_cross | taus("", 0.45, 0.1, 0.99) | cross,
        "uni_softlabel": both | own_uni | taus("", 0.45, 0.1, 1.0) | uni,
    }


def published(folder: Path) -> tuple[Path, RetrievalModule]:
    """A synthetic checkpoint in the authors' layout, and the model it came from."""
    torch.manual_seed(0)
    model = RetrievalModule(CLIP(config=CONFIG), InfoNCE(scale="element_mean"), [CUSA()]).eval()
    names = ["tau", "cross_tau", "cross_the_softlabel_tau", "uni_tau_image", "uni_tau_text"]
    for use in ("cross", "uni"):
        for side in ("image", "text"):
            for layer in (f"ln_{use}_{side}_projection", f"{use}_{side}_projection"):
                names += [f"{layer}.weight", f"{layer}.bias"]
    ours = model.state_dict()
    weights = {name: ours[parameter_name(name)] for name in names}
    weights |= {f"clip_model.{name}": value for name, value in model.backbone.model.state_dict().items()}
    weights["clip_model.logit_scale"] = torch.tensor(4.6)
    saved = {"model": weights, "config": {"loss_config": loss_config({}, {}, {})}, "epoch": 3, "best": 61.2}
    torch.save(saved, folder / "published.pth")
    return folder / "published.pth", model


@pytest.mark.slow
def test_a_converted_checkpoint_is_the_same_model(tmp_path, scenes):
    path, model = published(tmp_path)
    out = tmp_path / "new" / "ours.ckpt"
    command.main(["convert", "cusa", str(path), "--out", str(out)])
    opened = RetrievalModule.load_from_checkpoint(out).eval()
    assert opened.describe()["methods"][0]["init_args"]["uni_temperature"]["sharing"] == "separate"
    assert opened.objective.scale == "element_mean"
    image, captions = torch.randint(256, (2, 3, 32, 32)).byte(), ["a red bus", "two dogs play in the snow"]
    with torch.no_grad():
        for side, theirs in ((opened.encode_image(image), model.encode_image(image)),
                             (opened.encode_text(captions), model.encode_text(captions))):  # fmt: skip
            assert torch.equal(side.pooled, theirs.pooled)
            assert torch.equal(side.unimodal, theirs.unimodal)
    options = [f"--data.root={scenes}", f"--trainer.default_root_dir={tmp_path / 'run'}", "--data.num_workers=0"]
    options += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    assert itr(["test", f"--ckpt_path={out}", *options]) == 0
    assert "test/rsum" in json.loads((tmp_path / "run" / "metrics.json").read_text())
    with pytest.raises(UserError, match="already exists"):
        command.main(["convert", "cusa", str(path), "--out", str(out)])


def test_the_authors_checkpoint_through_the_command_line(shared, tmp_path):
    tensors, meta = golden.load(shared / "golden" / "cusa_clip.safetensors")
    command.main(
        ["convert", "cusa", str(shared / "golden" / "cusa_clip_checkpoint.pth"), "--out", str(tmp_path / "o.ckpt")]
    )
    model = RetrievalModule.load_from_checkpoint(tmp_path / "o.ckpt").eval()
    model.backbone.normalise = lambda pixels: pixels
    with torch.no_grad():
        image = model.embed_image(model.backbone.encode_image(tensors["in.pixels"]))
        text = model.encode_text(json.loads(meta["texts"]))
    shouted = model.encode_text([text.upper() + "!" for text in json.loads(meta["texts"])])
    torch.testing.assert_close(shouted.pooled, text.pooled)  # it cleans captions like the authors
    for name, found in {
        "cross_image": image.pooled, "uni_image": image.unimodal, "cross_text": text.pooled, "uni_text": text.unimodal
    }.items():  # fmt: skip
        torch.testing.assert_close(found, tensors[f"out.{name}"], rtol=0, atol=1e-4)


def test_a_pickle_with_code_is_rejected_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"model": {}, "config": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="could not read"):
        read_cusa_model(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_a_model_trained_without_infonce_has_no_temperature_to_convert(tmp_path):
    path, model = published(tmp_path)
    saved = torch.load(path, weights_only=True)
    saved["config"]["loss_config"]["contrastive"]["is_on"] = False
    tau = saved["model"].pop("tau")
    saved |= {"model": {f"module._orig_mod.{name}": value for name, value in saved["model"].items()}}
    torch.save({**saved, "best": np.float64(61.2)}, path)
    found = read_cusa_model(path).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in model.state_dict().items())
    assert found["objective.temperature.value"] == tau
    saved["config"]["loss_config"]["contrastive"]["is_on"] = True
    torch.save(saved, path)
    with pytest.raises(UserError, match="temperature 'tau' is missing"):
        read_cusa_model(path)


def test_wrong_files_are_reported(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_cusa_model(tmp_path / "absent.pth")
    torch.save({"model": {}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="no 'config'"):
        read_cusa_model(tmp_path / "other.pth")
    path, _ = published(tmp_path)
    saved = torch.load(path, weights_only=True)
    del saved["model"]["uni_text_projection.bias"]
    torch.save(saved, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"uni_text\.1\.bias"):
        read_cusa_model(tmp_path / "part.pth")
    saved["model"]["surprise"] = torch.zeros(1)
    torch.save(saved, tmp_path / "more.pth")
    with pytest.raises(UserError, match="unknown weight 'surprise'"):
        read_cusa_model(tmp_path / "more.pth")
    del saved["model"]["clip_model.ln_final.weight"]
    torch.save(saved, tmp_path / "less.pth")
    with pytest.raises(UserError, match=r"ln_final\.weight.* is missing"):
        read_cusa_model(tmp_path / "less.pth")


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14-336", "RN50x4"])
def test_openai_shapes_give_openai_configs(name):
    import open_clip

    expected = open_clip.get_model_config(name)
    with torch.device("meta"):
        weights = open_clip.CLIP(**expected, quick_gelu=True).state_dict()
    found = clip_config(weights)
    assert found["embed_dim"] == expected["embed_dim"]
    assert found["text_cfg"] == expected["text_cfg"]
    vision = {"head_width": 64, **expected["vision_cfg"]} if name.startswith("ViT") else expected["vision_cfg"]
    assert found["vision_cfg"] == {key: value for key, value in vision.items() if value is not None}


def test_every_option_of_the_authors_is_converted():
    config = loss_config(
        {"cross_softlabel_mode": "dot", "use_same_tau": False, "use_loss": "contrastive", "is_block_tau": True},
        {"use_cross_softlabel_same_tau": True, "use_cross_softlabel_same_softlabel_tau": False},
        {"contrastive_loss_mode": "sum", "is_block_tau": True, "rate": 2.0},
    )
    objective, method = from_loss_config(config)
    assert objective.scale == "standard"
    assert not objective.temperature.value.requires_grad
    assert (method.alpha, method.beta, method.targets) == (0.05, 0.25, "dot")
    arguments = method.init_args
    assert (arguments["loss"], arguments["uni_loss"]) == ("cross_entropy_element_mean", "kl")
    assert arguments["cross_temperature"] == Temperatures(
        0.45, (0.1, 0.99), False, "shared"
    )  # not `each`: one for both
    assert arguments["uni_temperature"].sharing == "cross"
    assert arguments["uni_soft_temperature"] == Temperatures(1.0, (0.1, 1.0), False, "separate")
    _, method = from_loss_config(loss_config({"is_on": False}, {}, {"is_on": False}))
    assert method.weights == {"usa": 0.5}
    assert not method.cross_head
