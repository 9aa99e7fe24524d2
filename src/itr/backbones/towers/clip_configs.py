"""Configs of open_clip: a check of their settings, and the text towers that they name, so that no network is needed."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import open_clip as untyped_open_clip
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from itr.backbones.towers.configs import suggest_name
from itr.errors import UserError

open_clip: Any = untyped_open_clip  # its functions are untyped, and the package has no explicit exports

_ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_XLM = {"model_type": "xlm-roberta", "vocab_size": 250_002, **_ROBERTA}
_NLLB = {
    "model_type": "m2m_100", "vocab_size": 256_206, "d_model": 1024, "encoder_attention_heads": 16,
    "max_position_embeddings": 1024, "scale_embedding": True, "decoder_layers": 1,  # open_clip takes the encoder alone
}  # fmt: skip
# As published on the hub under these names.
TEXT_CONFIGS: dict[str, dict[str, Any]] = {
    "roberta-base": {"model_type": "roberta", "vocab_size": 50_265, **_ROBERTA, **_BASE},
    "xlm-roberta-base": {**_XLM, **_BASE},
    "xlm-roberta-large": {**_XLM, **_LARGE},
    "facebook/nllb-200-distilled-600M": {**_NLLB, "encoder_layers": 12, "encoder_ffn_dim": 4096},
    "facebook/nllb-200-distilled-1.3B": {**_NLLB, "encoder_layers": 24, "encoder_ffn_dim": 8192},
}


def check_clip_config(config: dict[str, Any]) -> None:
    """Raise UserError if a model config of open_clip lacks a section, or has a setting that open_clip does not know."""
    top = {*inspect.signature(open_clip.CLIP.__init__).parameters, "custom_text", "multimodal_cfg"} - {"self"}
    parts: dict[str, set[str]] = {
        "vision_cfg": {item.name for item in dataclasses.fields(CLIPVisionCfg)},
        "text_cfg": {item.name for item in dataclasses.fields(CLIPTextCfg)} | {"hf_config"},
    }
    for missing in {"embed_dim", *parts} - set(config):
        raise UserError(f"config: {missing} is missing; see open_clip's model configs for the format")
    for name, known in {"config": top, **parts}.items():
        for key in config if name == "config" else config[name]:
            if key not in known:
                raise UserError(f"{name}: unknown setting {key!r}{suggest_name(key, known)}")
