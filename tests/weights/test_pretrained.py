"""No tower, teacher or encoder keeps random numbers where its files should have given weights."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, ViTConfig, ViTForImageClassification, ViTModel

from itr.backbones import CLIP, VSE
from itr.backbones.towers import pretrained_preprocessing
from itr.backbones.towers.building import SMALL_VISION, make_tower
from itr.backbones.towers.clip_loading import build_clip, find_clip_source
from itr.cli import main
from itr.errors import UserError
from itr.teachers.load import load_teacher
from itr.weights.reading import Weights
from tiny_teachers import SIZE, save_text_teacher
from weight_files import TINY_CLIP_CONFIG as CLIP_CONFIG
from weight_files import save_script

HUB = "laion--CLIP-ViT-L-14-laion2B-s32B-b82K"


def rename(folder: Path, change: Any) -> dict[str, torch.Tensor]:
    """Change the weights of a folder; returns the earlier ones."""
    file = folder / "model.safetensors"
    saved = load_file(file)
    save_file({k: v.clone() for k, v in change(saved).items()}, file, metadata={"format": "pt"})
    return saved


def prefixed(prefix: str) -> Any:
    return lambda weights: {f"{prefix}{name}": value for name, value in weights.items()}


def without(part: str) -> Any:
    return lambda weights: {name: value for name, value in weights.items() if part not in name}


def vit(folder: Path, kind: Any = ViTModel, **settings: Any) -> Path:
    torch.manual_seed(1)
    kind(ViTConfig(image_size=16, patch_size=8, **{**SIZE, **settings})).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "model.", "backbone.model."])
@pytest.mark.parametrize("kind", [ViTModel, ViTForImageClassification])
def test_towers_of_wrapped_models_are_loaded(tmp_path: Path, prefix: str, kind: Any) -> None:
    plain = make_tower("vision", str(vit(tmp_path / "plain", kind)), None).state_dict()
    rename(vit(tmp_path / "tower", kind), prefixed(prefix))

    tower = make_tower("vision", str(tmp_path / "tower"), None).state_dict()

    assert all(torch.equal(value, tower[name]) for name, value in plain.items())


@pytest.mark.parametrize("key", ["", "state_dict", "model_state_dict"])
def test_towers_in_torch_files_are_loaded_under_any_usual_key(tmp_path: Path, key: str) -> None:
    plain = make_tower("vision", str(vit(tmp_path / "plain")), None).state_dict()
    file = vit(tmp_path / "tower") / "model.safetensors"
    saved = prefixed("module.")(load_file(file)) | ({"args": argparse.Namespace(lr=1)} if not key else {})
    torch.save({"epoch": np.float64(1), key: saved} if key else saved, file.with_name("pytorch_model.bin"))
    file.unlink()

    tower = make_tower("vision", str(tmp_path / "tower"), None).state_dict()

    assert all(torch.equal(value, tower[name]) for name, value in plain.items())
    file.with_name("pytorch_model.bin").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"could not read the weights in .*pytorch_model\.bin: Unsupported operand"):
        make_tower("vision", str(tmp_path / "tower"), None)


def test_safetensors_in_several_files_are_preferred_to_a_torch_file_beside_them(tmp_path: Path) -> None:
    weights = load_file(vit(tmp_path) / "model.safetensors")
    plain = make_tower("vision", str(tmp_path), None).state_dict()
    (tmp_path / "model.safetensors").rename(tmp_path / "part.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "part.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.save({name: torch.zeros_like(value) for name, value in weights.items()}, tmp_path / "pytorch_model.bin")

    again = make_tower("vision", str(tmp_path), None).state_dict()

    assert all(torch.equal(value, again[key]) for key, value in plain.items())


def test_a_wrapper_of_an_inner_module_is_removed(tmp_path: Path) -> None:
    plain = make_tower("vision", str(vit(tmp_path / "plain")), None).state_dict()
    rename(vit(tmp_path / "tower"), lambda w: {n.replace("layer.0.", "layer.0._orig_mod."): v for n, v in w.items()})

    tower = make_tower("vision", str(tmp_path / "tower"), None).state_dict()

    assert all(torch.equal(value, tower[name]) for name, value in plain.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("layer.0"), "missing: .*layers?.0"),
        (without("embeddings.cls_token"), "missing: embeddings.cls_token"),
        (lambda w: {f"net{i}.{n}": v for i, (n, v) in enumerate(w.items())}, "missing: .*unexpected: net0"),
        (lambda w: {n: v[..., :-1] if "cls_token" in n else v for n, v in w.items()}, "of another shape: .*cls_token"),
    ],
)
def test_a_tower_without_its_weights_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    rename(vit(tmp_path), change)

    with pytest.raises(UserError, match=f"do not match the vision tower; {message}"):
        make_tower("vision", str(tmp_path), None)
    with pytest.raises(UserError, match="do not match the vision tower"):
        load_teacher("image", str(tmp_path))


def test_a_config_with_fewer_layers_than_the_file_is_refused(tmp_path: Path) -> None:
    vit(tmp_path, num_hidden_layers=2)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))

    with pytest.raises(UserError, match=r"unexpected: .*1.*fewer layers than the file"):
        make_tower("vision", str(tmp_path), None)


def test_what_no_output_depends_on_may_be_missing_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    config = BertConfig(vocab_size=20, **SIZE)
    BertForMaskedLM(config).save_pretrained(tmp_path)  # without a pooler, with a head
    config.architectures = ["BertModel"]

    with caplog.at_level(logging.INFO):
        make_tower("text", str(tmp_path), None, pooled=False)

    assert "the text tower: " in caplog.text
    assert "not used: cls." in caplog.text
    assert "LOAD REPORT" not in caplog.text + "".join(capsys.readouterr())


def test_a_pooler_is_needed_only_where_it_is_used(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    CLIPVisionModel(CLIPVisionConfig(image_size=16, patch_size=8, **SIZE)).save_pretrained(tmp_path)
    rename(tmp_path, without("post_layernorm"))  # between the tokens and the pooled output

    make_tower("vision", str(tmp_path), None)
    load_teacher("image", str(tmp_path), "tokens")
    with pytest.raises(UserError, match=r"missing: .*post_layernorm"):
        load_teacher("image", str(tmp_path))


def test_preprocessing_that_a_folder_names_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"size": {"height": 16, "width": 16}, "do_normalize": False, "resample": 3}))

    tower = make_tower("vision", None, SMALL_VISION)
    spec = pretrained_preprocessing(str(tmp_path), tower).spec

    assert (spec.size, spec.mean, spec.std, spec.interpolation) == (16, (0, 0, 0), (1, 1, 1), "bicubic")
    assert "not supported" not in caplog.text
    file.write_text(json.dumps({"size": {"height": 16, "width": 16}, "resample": 1}))
    pretrained_preprocessing(str(tmp_path), tower)
    assert "the resampling 1, which is not supported: images are resized with bicubic" in caplog.text


def test_text_teachers_are_checked(tmp_path: Path) -> None:
    save_text_teacher(tmp_path, ["a dog runs"])
    wanted = load_teacher("text", str(tmp_path)).encode(["a dog runs"])
    saved = rename(tmp_path, prefixed("_orig_mod."))

    assert torch.equal(load_teacher("text", str(tmp_path)).encode(["a dog runs"]), wanted)
    rename(tmp_path, lambda _: without("attention.self.query")(saved))
    with pytest.raises(UserError, match=r"missing: .*query"):
        load_teacher("text", str(tmp_path))


def sentences(folder: Path) -> Path:
    """A folder as sentence-transformers writes it."""
    st = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    save_text_teacher(folder / "bert", ["a dog runs"])
    model = Transformer(str(folder / "bert"))
    st.SentenceTransformer(modules=[model, Pooling(8)], device="cpu").save(str(folder / "st"))
    return folder / "st"


@pytest.mark.slow
def test_sentence_transformers_are_checked(tmp_path: Path) -> None:
    folder = sentences(tmp_path)
    wanted = load_teacher("text", str(folder)).encode(["a dog runs"])
    saved = rename(folder, prefixed("module."))

    assert torch.allclose(load_teacher("text", str(folder)).encode(["a dog runs"]), wanted)
    rename(folder, lambda _: without("pooler")(saved))
    assert torch.allclose(load_teacher("text", str(folder)).encode(["a dog runs"]), wanted)
    rename(folder, lambda _: without("attention.self.query")(saved))
    with pytest.raises(UserError, match=r"do not match the teacher; missing: .*query"):
        load_teacher("text", str(folder))


def timm_folder(folder: Path) -> Path:
    import timm

    torch.manual_seed(0)
    model: Any = timm.create_model("test_vit", num_classes=3)
    folder.mkdir()
    config = {**model.pretrained_cfg, "num_classes": 3}
    config = {k: v for k, v in config.items() if isinstance(v, (str, int, float, list, tuple))}
    (folder / "config.json").write_text(
        json.dumps({"architecture": "test_vit", "num_classes": 3, "pretrained_cfg": config})
    )
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def test_timm_teachers_are_checked(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "timm")
    name = f"timm:local-dir:{folder}"
    plain = load_teacher("image", name).encoder.module.state_dict()
    saved = rename(folder, prefixed("module."))

    again = load_teacher("image", name).encoder.module.state_dict()

    assert all(torch.equal(value, again[key]) for key, value in plain.items())
    rename(folder, lambda _: without("blocks.1")(saved))
    with pytest.raises(UserError, match=r"do not match the teacher; missing: blocks\.1"):
        load_teacher("image", name)


@pytest.mark.slow
def test_towers_of_timm_have_its_preprocessing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = timm_folder(tmp_path / "timm")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    own = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "crop_pct": 0.8}
    config["pretrained_cfg"] |= {**own, "crop_mode": "squash"}
    file.write_text(json.dumps(config))
    backbone = VSE(vision=str(folder), image_pooling="mean")
    spec = backbone.image_spec

    assert (spec.size, spec.interpolation, spec.resize, spec.to_rgb) == (160, "bilinear", "squash", "drop")
    assert (spec.mean, spec.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert VSE(**backbone.describe()["init_args"]).image_spec == spec
    assert "ImageNet" not in caplog.text
    teacher, by_timm = load_teacher("image", str(folder)), load_teacher("image", f"timm:local-dir:{folder}")
    assert (
        (teacher.encoder.spec, teacher.encoder.resize) == (by_timm.encoder.spec, by_timm.encoder.resize) == (spec, 200)
    )
    image = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    assert torch.allclose(teacher.encode(image), by_timm.encode(image), atol=1e-5)


@pytest.mark.parametrize("verb", ["features", "evaluate"])
def test_verbs_end_with_an_error_if_an_encoder_lacks_weights(
    tmp_path: Path, scenes: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    tower = str(vit(tmp_path / "tower"))
    rename(Path(tower), without("layer.0.attention"))
    images, out = tmp_path / "images", tmp_path / "out.json"
    arguments = {
        "features": [f"--data={scenes}", "--modality=image", f"--model={tower}", f"--out={tmp_path / 'out'}"],
        "evaluate": ["images", f"--root={images}", f"--model={tower}", f"--out={out}"],
    }
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(images / name)

    assert main([verb, *arguments[verb]]) == 1
    assert "do not match the vision tower; missing: " in capsys.readouterr().err


# CLIP


def small() -> Any:
    torch.manual_seed(2)
    return build_clip(CLIP_CONFIG, None, None)


@pytest.mark.parametrize("wrapped", ["module._orig_mod.", "state_dict", pytest.param("script", marks=pytest.mark.slow)])
def test_clip_weights_in_every_form_are_the_same(tmp_path: Path, wrapped: str) -> None:
    source, path = small(), tmp_path / "w.pt"
    saved = {k: v.half().float() for k, v in source.state_dict().items()}
    if wrapped == "script":
        saved = save_script(path, source)
    else:
        named = saved if wrapped == "state_dict" else prefixed(wrapped)(saved)
        torch.save({"epoch": 1, "state_dict": named}, path)

    model = CLIP(config=CLIP_CONFIG, pretrained=str(path)).model.state_dict()

    assert all(torch.equal(value, saved[name].float()) for name, value in model.items())


def test_clip_weights_without_a_scale_have_no_temperature(tmp_path: Path) -> None:
    torch.save(without("logit_scale")(small().state_dict()), tmp_path / "w.pt")

    assert CLIP(config=CLIP_CONFIG, pretrained=str(tmp_path / "w.pt")).pretrained_temperature is None


def test_clip_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    torch.save(without("resblocks.1")(small().state_dict()), tmp_path / "w.pt")

    with pytest.raises(UserError, match=r"w\.pt do not match the model; missing: transformer\.resblocks\.1"):
        CLIP(config=CLIP_CONFIG, pretrained=str(tmp_path / "w.pt"))


def file(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    save = save_file if path.suffix == ".safetensors" else torch.save
    save({"a": torch.zeros(1)}, path)
    return str(path)


@pytest.mark.parametrize(
    ("model", "name", "quick", "mean"),
    [
        ("ViT-B-32", "ViT-B-32.pt", True, 0.48145466),  # OpenAI's name
        ("ViT-L-14", "ViT-L-14.pt", True, 0.48145466),
        ("ViT-B-32", "vit_b_32-laion2b_e16-af8dbd0c.pth", False, 0.48145466),
        ("ViT-L-14", f"models--{HUB}/snapshots/0/open_clip_model.safetensors", False, 0.5),
        ("RN50", "my.pt", True, 0.48145466),  # all published weights
        ("ViT-B-16-SigLIP", "my.pt", False, 0.5),
        ("ViT-B-32-quickgelu", "my.pt", True, 0.48145466),
        ("roberta-ViT-B-32", "my.pt", True, 0.48145466),  # its config
    ],
)
def test_a_file_is_built_like_its_tag(tmp_path: Path, model: str, name: str, quick: bool, mean: float) -> None:
    path = tmp_path / name
    file(path)

    source = find_clip_source(model, str(path), None)

    assert source.config["quick_gelu"] is quick
    assert source.preprocess["mean"][0] == mean


def test_openai_archives_are_recognized_by_what_they_have(tmp_path: Path) -> None:
    save_script(tmp_path / "anything.pt")

    source = find_clip_source("ViT-B-32", str(tmp_path / "anything.pt"), None)

    assert source.config["quick_gelu"] is True
    assert isinstance(source.weights, Weights)
    assert source.weights.from_openai


def test_an_activation_that_nothing_shows_is_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = file(tmp_path / "my.pt")

    with pytest.raises(UserError, match=r"QuickGELU for openai.*GELU for laion.*Set quick_gelu to true or false"):
        find_clip_source("ViT-B-32", path, None)
    with caplog.at_level(logging.INFO):
        assert find_clip_source("ViT-L-14", path, None, quick_gelu=False).config["quick_gelu"] is False
    assert "GELU" in caplog.text
    assert "differ in mean, std" in caplog.text
    caplog.clear()
    find_clip_source("ViT-L-14", path, None, quick_gelu=False, given=["mean", "std"])
    assert "differ in" not in caplog.text


def test_a_config_with_quick_gelu_keeps_it_with_a_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip, "download_pretrained", lambda record: "w.pt")

    assert find_clip_source("roberta-ViT-B-32", "laion2b_s12b_b32k", None).config["quick_gelu"] is True


def test_the_activation_can_be_set() -> None:
    model = CLIP(config=CLIP_CONFIG, quick_gelu=True)

    assert any(type(module).__name__ == "QuickGELU" for module in model.model.modules())
    assert model.describe()["init_args"]["config"]["quick_gelu"] is True
