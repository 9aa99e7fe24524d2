"""Load the config, weights, preprocessing and tokenizer of an open_clip model."""

from __future__ import annotations

import copy
import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip as untyped_open_clip
from open_clip.pretrained import download_pretrained_from_hf
from torch import nn

from itr.backbones.tokenizers import BPETokenizer, Clean, HFTokenizer, load_tokenizer
from itr.backbones.towers.building import avoid_mask_sync
from itr.backbones.towers.clip_configs import TEXT_CONFIGS, check_clip_config
from itr.backbones.towers.clip_features import probe_embeddings
from itr.backbones.towers.configs import suggest_name
from itr.errors import UserError, quoted
from itr.weights.dependencies import used_names
from itr.weights.hub import hub_or_cache, loading_failure, ways_out
from itr.weights.open_clip_weights import FileProperties, fill_clip, properties_of
from itr.weights.reading import Weights, read_weights

log = logging.getLogger(__name__)
open_clip: Any = untyped_open_clip  # its functions are untyped, and the package has no explicit exports

SMALL_CLIP: dict[str, Any] = {
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
class ClipSource:
    """Where a model comes from, as returned by `find_clip_source`.

    Attributes:
        config: open_clip's model config.
        weights: pretrained weights, or the file with them; None for random ones.
        preprocess: mean, std, interpolation and resize_mode, if known.
        folder: folder of the tokenizer files, if they are not loaded by name.
    """

    config: dict[str, Any]
    weights: str | Weights | None = None
    preprocess: dict[str, Any] = field(default_factory=dict)
    folder: str | None = None


def find_clip_source(
    model: str | None,
    pretrained: str | None,
    config: dict[str, Any] | None,
    quick_gelu: bool | None = None,
    given: Sequence[str] = (),
) -> ClipSource:
    """Resolve a name of open_clip (`ViT-B-32`, `local-dir:FOLDER`, `hf-hub:ORG/NAME`) or an inline config.

    Args:
        model: the name.
        pretrained: tag or local file.
        config: inline config, if there is no name.
        quick_gelu: the activation that the user asks for.
        given: preprocessing that the user has set, by its name in open_clip.

    Raises:
        UserError: the name, tag, file or setting is unknown, a download failed, or a file may have either activation.
    """
    if model is None:
        source = _inline(copy.deepcopy(config or SMALL_CLIP), pretrained)
    elif model.startswith(("local-dir:", "hf-hub:")):
        if pretrained is not None:
            raise UserError(f"pretrained={pretrained!r}: {model} has its own weights; remove the option")
        source = _from_folder(model)
    else:
        source = _built_in(model.replace("/", "-"), pretrained, quick_gelu, given)
    if quick_gelu is not None:
        source.config["quick_gelu"] = quick_gelu
    check_clip_config(source.config)
    return source


def build_clip(config: dict[str, Any], weights: str | Weights | None, image_size: int | None) -> nn.Module:
    """Build the model of an open_clip config in float32, with the weights of a file if given."""
    settings = copy.deepcopy(config)
    vision, text = settings["vision_cfg"], settings["text_cfg"]
    vision["timm_model_pretrained"] = text["hf_model_pretrained"] = False
    if image_size is not None and not vision.get("timm_model_name"):
        vision["image_size"] = image_size
    custom = settings.pop("custom_text", False) or text.get("hf_model_name")
    model_class: Any = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    if "multimodal_cfg" in settings:
        model_class = open_clip.CoCa
    text_config = text.pop("hf_config", None) or TEXT_CONFIGS.get(text.get("hf_model_name") or "")
    with tempfile.TemporaryDirectory() as folder:
        if text_config:  # open_clip only accepts a name, so write it to a temporary folder
            Path(folder, "config.json").write_text(json.dumps(text_config), encoding="utf-8")
            text["hf_model_name"] = folder
        try:
            model: nn.Module = model_class(**settings)
        except Exception as error:  # open_clip, timm and transformers raise different types
            raise UserError(f"could not build a CLIP from config {config}: {quoted(error)}") from error
    if text.get("hf_model_name"):
        avoid_mask_sync(model.text.transformer)  # type: ignore[arg-type,union-attr]
    timm_size = vision.get("image_size", 224) if vision.get("timm_model_name") else None
    if timm_size is not None:
        _resize_timm(model.visual, timm_size)
    if weights is not None:
        fill_clip(model, weights if isinstance(weights, Weights) else _contents(weights), lambda: _used(model))
    if timm_size is not None and image_size not in (None, timm_size):
        _resize_timm(model.visual, image_size)
    return model


def make_clip_tokenizer(
    source: ClipSource, serialized: str | None, full_length: bool, clean: Clean | None = None
) -> BPETokenizer | HFTokenizer:
    """The tokenizer of the config; `clean` overrides how the config cleans captions."""
    text = source.config["text_cfg"]
    options = text.get("tokenizer_kwargs") or {}
    length = int(text.get("context_length", 77))
    name = text.get("hf_tokenizer_name")
    if serialized is None and not name:
        return BPETokenizer(length, full_length, clean or options.get("clean", "lower"))
    if serialized is None:
        serialized = load_tokenizer(source.folder or name).to_json()
    strip_end = bool(options.get("strip_sep_token", False))
    return HFTokenizer(serialized, length, full_length, clean or options.get("clean", "whitespace"), strip_end)


def _contents(path: str) -> Weights:
    """The weights in a file; of a file that only open_clip reads, only its path."""
    return Weights({}, path) if path.endswith((".npz", ".npy")) else read_weights(Path(path))


def _used(model: Any) -> set[str]:
    """The names of the weights that the embeddings depend on."""
    size, text = model.visual.image_size, getattr(model, "text", model)
    side, length = int(size[0] if isinstance(size, tuple) else size), int(getattr(text, "context_length", 0) or 2)
    return used_names(model, lambda module, device: probe_embeddings(module, side, length, device))


def _inline(config: dict[str, Any], pretrained: str | None) -> ClipSource:
    if pretrained is None:
        return ClipSource(config)
    if not Path(pretrained).is_file():
        raise UserError(f"pretrained={pretrained!r}: the file does not exist; to use a tag, also set `model`")
    weights = _contents(pretrained)
    if weights.from_openai:
        config.setdefault("quick_gelu", True)
    reasons = "activation: the config's, or OpenAI's for its own archives; preprocessing: OpenAI's, unless it is set"
    FileProperties(bool(config.get("quick_gelu")), {}, reasons).announce(pretrained, "the given config")
    return ClipSource(config, weights)


def _built_in(name: str, pretrained: str | None, quick_gelu: bool | None, given: Sequence[str]) -> ClipSource:
    config = open_clip.get_model_config(name)
    if config is None:
        known = open_clip.list_models()
        raise UserError(
            f"open_clip has no model {name!r}{suggest_name(name, known)}; open_clip.list_models() lists them"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        return ClipSource(config, None, open_clip.get_pretrained_cfg(name, tags[0]) if tags else {})
    if Path(pretrained).is_file():
        return _from_file(name, config, pretrained, quick_gelu, given)
    record = open_clip.get_pretrained_cfg(name, pretrained)
    if not record:
        hint = suggest_name(pretrained, tags) or f"; its tags: {', '.join(tags) or 'none'}"
        raise UserError(f"pretrained={pretrained!r} is neither a file nor a tag of {name}{hint}")
    # If weights were trained with another activation than the config's, open_clip only warns.
    config["quick_gelu"] = bool(config.get("quick_gelu") or record.get("quick_gelu"))
    try:
        with hub_or_cache(name):
            weights = str(open_clip.download_pretrained(record))
    except Exception as error:  # network, hub and disk raise different types
        raise UserError(
            f"could not download pretrained={pretrained!r} of {name}: {loading_failure(name, error)}. {ways_out()} "
            "Without the option, CLIP has random weights."
        ) from error
    return ClipSource(config, weights, record)


def _from_file(
    name: str, config: dict[str, Any], path: str, quick_gelu: bool | None, given: Sequence[str]
) -> ClipSource:
    """A built-in model with the weights of a local file; what is assumed about them is logged."""
    weights = _contents(path)
    found = properties_of(weights, name, config, quick_gelu, given)
    config["quick_gelu"] = found.quick_gelu
    found.announce(path, name)
    return ClipSource(config, weights, found.preprocess)


def _from_folder(model: str) -> ClipSource:
    kind, _, location = model.partition(":")
    folder = location if kind == "local-dir" else None
    try:
        if folder is not None:
            path = Path(location, _CONFIG_FILE)
            weights = next((str(Path(location, name)) for name in _WEIGHTS if Path(location, name).is_file()), None)
        else:
            with hub_or_cache(location):
                path = Path(download_pretrained_from_hf(location, filename=_CONFIG_FILE))
                weights = str(download_pretrained_from_hf(location))
        pretrained_config = json.loads(path.read_text(encoding="utf-8"))
    except Exception as error:  # see above
        reason = quoted(error) if folder else f"{loading_failure(location, error)}. {ways_out()}"
        raise UserError(f"could not load model {model!r}: {reason}") from error
    if weights is None:
        raise UserError(f"model {model!r}: the folder has no weights file; expected one of {', '.join(_WEIGHTS)}")
    if not pretrained_config.get("preprocess_cfg"):
        log.warning("%s has no preprocess_cfg: images are normalized with OpenAI's mean and std, unless set", model)
    config = pretrained_config.get("model_cfg", pretrained_config)
    return ClipSource(config, weights, pretrained_config.get("preprocess_cfg", {}), folder)


def _resize_timm(visual: Any, size: Any) -> None:
    """Interpolate the positions of a timm tower; open_clip keeps the size in timm's model name."""
    patches = getattr(visual.trunk, "patch_embed", None)
    if getattr(patches, "img_size", None) not in (None, (size, size)):
        visual.set_input_size(size)
    visual.image_size = (size, size)
