"""Where a CLIP of open_clip comes from: its config, its weights, its preprocessing and its tokenizer."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip as untyped_open_clip
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.pretrained import download_pretrained_from_hf
from torch import nn

from itr.backbones.attention import ask_nothing
from itr.backbones.tokenizers import BPETokenizer, Clean, HFTokenizer, first_line, load_tokenizer
from itr.backbones.towers import near
from itr.errors import UserError

open_clip: Any = untyped_open_clip  # its functions have no types, and its package exports nothing explicitly

SMALL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "patch_size": 8, "width": 128, "head_width": 32, "layers": 4},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2},
}
_CONFIG_FILE = "open_clip_config.json"
_WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "model.safetensors", "pytorch_model.bin",
)  # fmt: skip


@dataclass
class Source:
    """What `find` found.

    Attributes:
        config: open_clip's model config.
        weights: file with pretrained weights; None for random ones.
        preprocess: mean, std, interpolation and resize_mode, where they are known.
        folder: where the tokenizer's files are, if they are not to be looked for under their own name.
    """

    config: dict[str, Any]
    weights: str | None = None
    preprocess: dict[str, Any] = field(default_factory=dict)
    folder: str | None = None


def find(model: str | None, pretrained: str | None, config: dict[str, Any] | None) -> Source:
    """Resolve a name of open_clip (`ViT-B-32`, `local-dir:FOLDER`, `hf-hub:ORG/NAME`) or an inline config.

    Raises:
        UserError: no such name, tag, file or setting, or a download that fails.
    """
    if model is None:
        source = Source(copy.deepcopy(config or SMALL), weights=_file(pretrained) if pretrained else None)
    elif model.startswith(("local-dir:", "hf-hub:")):
        if pretrained is not None:
            raise UserError(f"pretrained {pretrained!r}: {model} brings its own weights, leave it out")
        source = _from_folder(model)
    else:
        source = _built_in(model.replace("/", "-"), pretrained)
    _check_keys(source.config)
    return source


def build(config: dict[str, Any], weights: str | None, image_size: int | None) -> nn.Module:
    """The model of an open_clip config in float32, with its weights where a file is given."""
    settings = copy.deepcopy(config)
    vision, text = settings["vision_cfg"], settings["text_cfg"]
    vision["timm_model_pretrained"] = text["hf_model_pretrained"] = False
    if image_size is not None and not vision.get("timm_model_name"):
        vision["image_size"] = image_size
    custom = settings.pop("custom_text", False) or text.get("hf_model_name")
    model_class: Any = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    if "multimodal_cfg" in settings:
        model_class = open_clip.CoCa
    with tempfile.TemporaryDirectory() as folder:
        if "hf_config" in text:  # open_clip takes a name only, so the inline config becomes a folder for a moment
            Path(folder, "config.json").write_text(json.dumps(text.pop("hf_config")), encoding="utf-8")
            text["hf_model_name"] = folder
        try:
            model: nn.Module = model_class(**settings)
        except Exception as error:  # open_clip, timm and transformers each raise their own
            raise UserError(f"no CLIP can be built from config {config}: {first_line(error)}") from error
    if text.get("hf_model_name"):
        ask_nothing(model.text.transformer)  # type: ignore[arg-type,union-attr]
    timm_size = vision.get("image_size", 224) if vision.get("timm_model_name") else None
    if timm_size is not None:
        _resize_timm(model.visual, timm_size)
    if weights is not None:
        _load(model, weights)
    if timm_size is not None and image_size not in (None, timm_size):
        _resize_timm(model.visual, image_size)
    return model


def make_tokenizer(
    source: Source, serialised: str | None, full_length: bool, clean: Clean | None = None
) -> BPETokenizer | HFTokenizer:
    """The tokenizer that the config asks for; `clean` goes before the config's way of cleaning captions."""
    text = source.config["text_cfg"]
    options = text.get("tokenizer_kwargs") or {}
    length = int(text.get("context_length", 77))
    name = text.get("hf_tokenizer_name")
    if serialised is None and not name:
        return BPETokenizer(length, full_length, clean or options.get("clean", "lower"))
    if serialised is None:
        serialised = load_tokenizer(source.folder or name).to_json()
    strip_end = bool(options.get("strip_sep_token", False))
    return HFTokenizer(serialised, length, full_length, clean or options.get("clean", "whitespace"), strip_end)


def _file(path: str) -> str:
    if not Path(path).is_file():
        raise UserError(f"pretrained {path!r}: no such file (a tag needs the `model` that it belongs to)")
    return path


def _built_in(name: str, pretrained: str | None) -> Source:
    config = open_clip.get_model_config(name)
    if config is None:
        known = open_clip.list_models()
        raise UserError(f"open_clip has no model {name!r}{near(name, known)}; open_clip.list_models() lists all")
    tags = open_clip.list_pretrained_tags_by_model(name)
    # A local file says nothing of its preprocessing: that of the model's published weights is the best guess.
    facts = open_clip.get_pretrained_cfg(name, tags[0]) if tags else {}
    if pretrained is None or Path(pretrained).is_file():
        return Source(config, pretrained, facts)
    facts = open_clip.get_pretrained_cfg(name, pretrained)
    if not facts:
        hint = near(pretrained, tags) or f"; it has {', '.join(tags) or 'none'}"
        raise UserError(f"pretrained {pretrained!r} is neither a file nor a tag of {name}{hint}")
    # open_clip only warns where weights were trained with another activation than the config names.
    config["quick_gelu"] = bool(facts.get("quick_gelu", False))
    try:
        weights = str(open_clip.download_pretrained(facts))
    except Exception as error:  # network, hub and disk each raise their own
        raise UserError(
            f"pretrained {pretrained!r} of {name} can't be downloaded ({first_line(error)}). Give the path of a "
            "downloaded file, leave it out for random weights, or run once with a network."
        ) from error
    return Source(config, weights, facts)


def _from_folder(model: str) -> Source:
    kind, _, place = model.partition(":")
    try:
        if kind == "local-dir":
            folder, path = place, Path(place, _CONFIG_FILE)
            weights = next((str(Path(place, name)) for name in _WEIGHTS if Path(place, name).is_file()), None)
        else:
            folder, path = None, Path(download_pretrained_from_hf(place, filename=_CONFIG_FILE))
            weights = str(download_pretrained_from_hf(place))
        facts = json.loads(path.read_text(encoding="utf-8"))
    except Exception as error:  # as above
        raise UserError(f"model {model!r} can't be had: {first_line(error)}") from error
    if weights is None:
        raise UserError(f"model {model!r}: the folder holds none of {', '.join(_WEIGHTS)}")
    return Source(facts.get("model_cfg", facts), weights, facts.get("preprocess_cfg", {}), folder)


def _check_keys(config: dict[str, Any]) -> None:
    top = {*inspect.signature(open_clip.CLIP.__init__).parameters, "custom_text", "multimodal_cfg"} - {"self"}
    parts: dict[str, set[str]] = {
        "vision_cfg": {item.name for item in dataclasses.fields(CLIPVisionCfg)},
        "text_cfg": {item.name for item in dataclasses.fields(CLIPTextCfg)} | {"hf_config"},
    }
    for missing in {"embed_dim", *parts} - set(config):
        raise UserError(f"config: {missing} is missing; open_clip's own model configs show the form")
    for name, known in {"config": top, **parts}.items():
        for key in config if name == "config" else config[name]:
            if key not in known:
                raise UserError(f"{name}: no setting {key!r}{near(key, known)}")


def _resize_timm(visual: Any, size: Any) -> None:
    """Interpolate the positions of a timm tower, which open_clip leaves at the size in timm's name."""
    patches = getattr(visual.trunk, "patch_embed", None)
    if getattr(patches, "img_size", None) not in (None, (size, size)):
        visual.set_input_size(size)
    visual.image_size = (size, size)


def _load(model: nn.Module, weights: str) -> None:
    try:
        open_clip.load_checkpoint(model, weights, strict=True, weights_only=True)
    except Exception as error:  # a wrong file shows itself as anything from a KeyError to an unpickling error
        raise UserError(f"the weights {weights} don't fit the model: {first_line(error)}") from error
