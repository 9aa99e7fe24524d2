"""The rows of `docs/backbones.md`, and a small model of the architecture of each."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip

from itr.backbones import CLIP, VSE, Backbone, Dual
from tiny_duals import DUALS

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
VIT = {"image_size": 32, "patch_size": 16, **SIZES}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
# The smallest tower of timm of the same kind.
TIMM = {
    "convnext_base": "convnext_atto", "eva02_large_patch14_clip_224": "eva02_tiny_patch14_224",
    "vit_base_patch16_siglip_224": "vit_tiny_patch16_224", "vitamin_large_224": "vitamin_small_224",
    "fastvit_mci2": "fastvit_mci0", "vit_pe_core_large_patch14_336": "vit_pe_core_tiny_patch16_384",
}  # fmt: skip
HF_TEXT: dict[str, dict[str, Any]] = {
    "roberta-base": {"model_type": "roberta", "vocab_size": 49408, "max_position_embeddings": 90, **SIZES},
    "xlm-roberta-base": {"model_type": "xlm-roberta", "vocab_size": 49408, "max_position_embeddings": 90, **SIZES},
    "facebook/nllb-200-distilled-600M": {
        "model_type": "m2m_100", "vocab_size": 49408, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "max_position_embeddings": 90,
    },
}  # fmt: skip
VISION: dict[str, dict[str, Any]] = {
    "ViT": {"model_type": "vit", **VIT},
    "DeiT": {"model_type": "deit", **VIT},
    "Swin": {"model_type": "swin", **SWIN},
    "Swin V2": {"model_type": "swinv2", **SWIN},
    "ConvNeXt": {"model_type": "convnext", "image_size": 32, "num_stages": 2, **STAGES},
    "ConvNeXt V2": {"model_type": "convnextv2", "image_size": 32, "num_stages": 2, **STAGES},
    "ResNet": {"model_type": "resnet", "embedding_size": 8, "layer_type": "basic", **STAGES},
    "BEiT": {"model_type": "beit", **VIT},
    "DINOv2": {"model_type": "dinov2", "mlp_ratio": 2, **{key: VIT[key] for key in VIT if key != "intermediate_size"}},
    "CLIP vision": {"model_type": "clip_vision_model", **VIT},
    "SigLIP vision": {"model_type": "siglip_vision_model", **VIT},
}
ENDS = {"eos_token_id": 49407, "bos_token_id": 49406}
TEXT: dict[str, dict[str, Any]] = {
    "BERT": {"model_type": "bert", **SIZES},
    "RoBERTa": {"model_type": "roberta", **SIZES},
    "DistilBERT": {"model_type": "distilbert", "dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 32},
    "MPNet": {"model_type": "mpnet", **SIZES},
    "MiniLM": {"model_type": "bert", **SIZES},
    "XLM-RoBERTa": {"model_type": "xlm-roberta", **SIZES},
    "ELECTRA": {"model_type": "electra", "embedding_size": 16, **SIZES},
    "ALBERT": {"model_type": "albert", "embedding_size": 16, **SIZES},
    "CLIP text": {"model_type": "clip_text_model", **ENDS, **SIZES},
    "SigLIP text": {"model_type": "siglip_text_model", **SIZES},
    "SigLIP 2 text": {"model_type": "siglip_text_model", **SIZES},
    "MetaCLIP 2 text": {"model_type": "metaclip_2_text_model", **ENDS, **SIZES},
}
DUAL = {
    "CLIP": "clip", "SigLIP": "siglip", "SigLIP 2": "siglip", "MetaCLIP 2": "metaclip_2", "AltCLIP": "altclip",
    "Chinese-CLIP": "chinese_clip", "ALIGN": "align", "BLIP": "blip",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        table: `CLIP`, `Dual`, `vision` or `text`.
        family: the first cell.
        options: the options of the backbone by name, without those that name weights.
        cells: all cells by the heads of their columns.
    """

    table: str
    family: str
    options: dict[str, str]
    cells: dict[str, str]


def rows() -> list[Row]:
    """All rows of the page."""
    found = []
    for table, body in re.findall(r"<!-- families: (\w+) -->\n(.*?)\n\n", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()]
        for line in lines[2:]:
            cells = dict(zip(lines[0], line, strict=True))
            words = shlex.split(cells["options"].strip("`"))
            options = dict(zip(words[::2], words[1::2], strict=True))
            found.append(Row(table, cells["family"], options, cells))
    return found


def small_clip(row: Row) -> Backbone:
    """Its model of open_clip with a layer or two; everything but the sizes is as published."""
    config = open_clip.get_model_config(row.options["--model.backbone.model"])
    vision, text = config["vision_cfg"], config["text_cfg"]
    config["embed_dim"] = 192 if vision.get("timm_proj") == "none" else 32
    vision["image_size"] = 64
    if "timm_model_name" in vision:
        vision["timm_model_name"] = TIMM[vision["timm_model_name"]]
    elif isinstance(vision["layers"], list):
        vision |= {"layers": [1, 1, 1, 1], "width": 8}
    else:
        vision |= {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    if "attn_pooler_heads" in vision:
        vision["attn_pooler_heads"] = 2
    if "hf_model_name" in text:
        text["hf_config"] = HF_TEXT[text["hf_model_name"]]
    else:
        text |= {"width": 32, "heads": 2, "layers": 1, "vocab_size": 49408}
    text.pop("hf_tokenizer_name", None)  # CLIP's own, which needs no network
    if text.get("pool_type") == "eos":
        text["eos_id"] = 49407
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= {"width": 32, "heads": 2, "layers": 1}
    return CLIP(config=config)


def small_dual(row: Row) -> Backbone:
    """The architecture of its family."""
    return Dual(config=DUALS[DUAL[row.family]])


def small_vse(row: Row) -> Backbone:
    """Its tower beside a small one."""
    chosen = {name.rpartition(".")[2]: value for name, value in row.options.items() if name.endswith("_pooling")}
    small = {"vision": {"vision_config": VISION.get(row.family)}, "text": {"text_config": TEXT.get(row.family)}}
    other = {"vision": {"text_config": TEXT["BERT"]}, "text": {"vision_config": VISION["ViT"]}}
    settings: dict[str, Any] = {**small[row.table], **other[row.table], **chosen, "dim": 32}
    return VSE(**settings)


BUILDERS: dict[str, dict[str, Callable[[Row], Backbone]]] = {
    "CLIP": {row.family: small_clip for row in rows() if row.table == "CLIP"},
    "Dual": dict.fromkeys(DUAL, small_dual),
    "vision": dict.fromkeys(VISION, small_vse),
    "text": dict.fromkeys(TEXT, small_vse),
}
