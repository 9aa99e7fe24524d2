"""Names and shapes of the weights in official checkpoints of D2S-VSE."""

from __future__ import annotations

import math
import re
from typing import Any

from torch import Tensor

from itr.errors import UserError

VISION = "img_enc.visual_encoder."
BERT = "txt_enc.bert."

# Weights that no embedding depends on: heads of the towers, the second normalization of the word MLP, unused tokens of
# the decoder, counters, and buffers that older releases of transformers stored although they can be computed.
_DROPPED = re.compile(
    r"(\.pooler\.|\.mlp\.bns\.1\.|\.num_batches_tracked$|\.position_ids$|\.token_type_ids$|\.relative_position_index$"
    r"|^prompt_learner\.mask_token$)"
)

# Applied in this order; the teacher comes before the text encoder, whose name has the same ending.
_PARTS = (
    (r"^img_enc\.visual_encoder\.", "backbone.vision_tower."),
    (r"^img_enc\.image_encoder\.fc\.", "backbone.image_projection."),
    (r"^img_enc\.image_encoder\.gpool\.", "backbone.image_pool."),
    (r"^long_txt_enc\.", "methods.d2s.teacher.encoder.text."),
    (r"^txt_enc\.", "backbone.text."),
    (r"\.text\.bert\.", ".text_tower."),
    (r"\.text\.fc\.", ".text_projection."),
    (r"\.text\.ln\.", ".text_norm."),
    (r"\.text\.gpool\.", ".text_pool."),
    (r"\.text\.mlp\.layers\.0\.", ".text_mlp.hidden."),
    (r"\.text\.mlp\.layers\.1\.", ".text_mlp.out."),
    (r"\.text\.mlp\.bns\.0\.", ".text_mlp.norm."),
    (r"^prompt_learner\.prompt_tokens$", "methods.d2s.decoder.prompts"),
    (r"^prompt_learner\.decoder_norm\.", "methods.d2s.decoder.norm."),
    (r"^prompt_learner\.pooling\.", "methods.d2s.decoder.pool."),
    (r"^prompt_learner\.decoder_blocks\.(\d+)\.attn\.", r"methods.d2s.decoder.blocks.\1.attention."),
    (r"^prompt_learner\.decoder_blocks\.(\d+)\.mlp\.", r"methods.d2s.decoder.blocks.\1."),
    (r"^prompt_learner\.decoder_blocks\.", "methods.d2s.decoder.blocks."),
    (r"^prompt_learner\.cross_attn\.in_proj_", "methods.d2s.decoder.attention.qkv."),
    (r"^prompt_learner\.cross_attn\.out_proj\.", "methods.d2s.decoder.attention.proj."),
)

# transformers 4 -> 5, below the vision tower.
_VIT = (
    (r"encoder\.layer\.", "layers."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attention.\1."),
)
_SWIN = (
    (r"\.attention\.self\.(query|key|value)\.", r".attention.\1."),
    (
        r"\.attention\.self\.relative_position_bias_table",
        ".attention.relative_position_bias.relative_position_bias_table",
    ),
)
_BOTH = (
    (r"\.attention\.query\.", ".attention.q_proj."),
    (r"\.attention\.key\.", ".attention.k_proj."),
    (r"\.attention\.value\.", ".attention.v_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)


def rename_d2s_weights(weights: dict[str, Tensor], vision_type: str) -> dict[str, Tensor]:
    """Rename weights from the authors' names to ours."""
    towers = {"vit": _VIT + _BOTH, "swin": _SWIN + _BOTH}
    if vision_type not in towers:
        raise UserError(f"unknown vision tower {vision_type!r}; checkpoints of D2S-VSE have vit or swin")
    renamed = {}
    for name, value in weights.items():
        if _DROPPED.search(name):
            continue
        own = _replaced(name, _PARTS)
        if own.startswith("backbone.vision_tower."):
            own = _replaced(own, towers[vision_type])
        renamed[own] = value
    return renamed


def _replaced(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def text_config_of(weights: dict[str, Tensor]) -> dict[str, Any]:
    """The config of a BERT of these shapes, with 64 channels per head, as in all published ones."""
    vocabulary, width = weights[BERT + "embeddings.word_embeddings.weight"].shape
    return {
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": _count(weights, BERT + "encoder.layer."),
        "num_attention_heads": _heads(width),
        "intermediate_size": len(weights[BERT + "encoder.layer.0.intermediate.dense.bias"]),
        "max_position_embeddings": len(weights[BERT + "embeddings.position_embeddings.weight"]),
        "type_vocab_size": len(weights[BERT + "embeddings.token_type_embeddings.weight"]),
    }


def vision_config_of(weights: dict[str, Tensor]) -> dict[str, Any]:
    """The config of a ViT or Swin of these shapes; ViT has 64 channels per head, as in all published ones."""
    if VISION + "embeddings.cls_token" in weights:
        return _vit_config(weights)
    if VISION + "encoder.layers.0.blocks.0.layernorm_before.weight" in weights:
        return _swin_config(weights)
    raise UserError("the vision tower is neither ViT nor Swin")


def _vit_config(weights: dict[str, Tensor]) -> dict[str, Any]:
    patches = weights[VISION + "embeddings.position_embeddings"].shape[1] - 1
    width, channels, patch_size, _ = weights[VISION + "embeddings.patch_embeddings.projection.weight"].shape
    return {
        "model_type": "vit",
        "hidden_size": width,
        "num_hidden_layers": _count(weights, VISION + "encoder.layer."),
        "num_attention_heads": _heads(width),
        "intermediate_size": len(weights[VISION + "encoder.layer.0.intermediate.dense.bias"]),
        "image_size": math.isqrt(patches) * patch_size,
        "patch_size": patch_size,
        "num_channels": channels,
        "qkv_bias": VISION + "encoder.layer.0.attention.attention.query.bias" in weights,
    }


def _swin_config(weights: dict[str, Tensor]) -> dict[str, Any]:
    """Window size and heads follow from the tables of relative positions [(2 W - 1)^2, heads]."""
    stages = VISION + "encoder.layers."
    depths = [_count(weights, f"{stages}{stage}.blocks.") for stage in range(_count(weights, stages))]
    table = "blocks.0.attention.self.relative_position_bias_table"
    tables = [weights[f"{stages}{stage}.{table}"] for stage in range(len(depths))]
    window = (math.isqrt(len(tables[0])) + 1) // 2
    width, channels, patch_size, _ = weights[VISION + "embeddings.patch_embeddings.projection.weight"].shape
    return {
        "model_type": "swin",
        "embed_dim": width,
        "depths": depths,
        "num_heads": [entry.shape[1] for entry in tables],
        "window_size": window,
        "mlp_ratio": len(weights[f"{stages}0.blocks.0.intermediate.dense.bias"]) / width,
        "image_size": window
        * patch_size
        * 2 ** (len(depths) - 1),  # in the published ones, the last feature map is one window
        "patch_size": patch_size,
        "num_channels": channels,
        "qkv_bias": f"{stages}0.blocks.0.attention.self.query.bias" in weights,
        "use_absolute_embeddings": VISION + "embeddings.position_embeddings" in weights,
    }


def _count(weights: dict[str, Tensor], prefix: str) -> int:
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in weights if name.startswith(prefix))


def _heads(width: int) -> int:
    if width % 64:
        raise UserError(f"a tower of width {width} is not one of the published ones: pass its config")
    return width // 64
