"""A tiny dual encoder of each family of `Dual`, and folders of them as their authors publish them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from itr.backbones.dual.families import FAMILIES

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
VISION = {**SIZES, "image_size": 32, "patch_size": 8}
TEXT = {**SIZES, "vocab_size": 49408}
ENDS = {"bos_token_id": 49406, "eos_token_id": 49407}
STAGES = {
    "in_channels": [32, 16], "out_channels": [16, 64], "kernel_sizes": [3, 3], "strides": [1, 2],
    "num_block_repeats": [1, 1], "expand_ratios": [1, 6],
}  # fmt: skip
DUALS: dict[str, dict[str, Any]] = {
    "clip": {"projection_dim": 24, "vision_config": VISION, "text_config": {**TEXT, **ENDS}},
    "metaclip_2": {"projection_dim": 24, "vision_config": VISION, "text_config": {**TEXT, **ENDS}},
    "siglip": {"vision_config": VISION, "text_config": {**TEXT, **ENDS}},
    "altclip": {"projection_dim": 24, "vision_config": VISION, "text_config": {**TEXT, "project_dim": 28}},
    "chinese_clip": {"projection_dim": 24, "vision_config": VISION, "text_config": TEXT},
    "align": {
        "projection_dim": 16,
        "vision_config": {
            "image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 32,
            "initializer_range": 0.3, **STAGES,
        },
        "text_config": TEXT,
    },
    "blip": {"image_text_hidden_size": 24, "vision_config": VISION, "text_config": TEXT},
}  # fmt: skip
DUALS = {name: {"model_type": name, **settings} for name, settings in DUALS.items()}
TEMPERATURE, BIAS = 0.05, -7.0
PIECES = ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in ("a", "dog", "runs", "on", "the", "mat")), "▁"]


def siglip_tokenizer() -> Any:
    """A tokenizer like those of SigLIP: pieces of words, an end token, and neither cleaning nor a start token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = [(piece, -2.0) for piece in PIECES] + [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz!,"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(PIECES[:3])
    return tokenizer


def save_siglip_tokenizer(folder: Path) -> None:
    """Its files as on the hub, where they name a class that needs sentencepiece."""
    siglip_tokenizer().save(str(folder / "tokenizer.json"))
    names = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "SiglipTokenizer", "do_lower_case": True, "model_max_length": 64, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def theirs(name: str, **text: Any) -> Any:
    """A model of transformers with random weights; `text` changes the text tower's settings."""
    import transformers

    settings = {**DUALS[name], "text_config": {**DUALS[name]["text_config"], **text}}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**settings)
    model = getattr(transformers, FAMILIES[name].model)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # some are initialized with zeros
            parameter.add_(0.02 * torch.randn_like(parameter))
        for scale, value in (
            ("logit_scale", -math.log(TEMPERATURE)),
            ("temperature", TEMPERATURE),
            ("logit_bias", BIAS),
        ):
            if hasattr(model, scale):
                getattr(model, scale).fill_(value)
    return model


def processor(name: str) -> Any:
    """Its image processor, as published but for 32 pixels."""
    import transformers

    family = FAMILIES[name]
    made = getattr(transformers, family.processor)(**family.processor_options)
    ratio = 1.0 if made.crop_size is None or made.size.shortest_edge else made.size.height / made.crop_size.height
    side = {"height": round(32 * ratio), "width": round(32 * ratio)}
    sizes: dict[str, Any] = {"size": {"shortest_edge": 32} if made.size.shortest_edge else side}
    if made.crop_size is not None:
        sizes["crop_size"] = {"height": 32, "width": 32}
    return type(made)(**{**family.processor_options, **sizes})


def save_dual(folder: Path, name: str, tokenizer: Path) -> Any:
    """A folder with model, image processor and tokenizer; the tokenizer is that of `tokenizer`, or SigLIP's."""
    from transformers import AutoTokenizer

    siglip = name == "siglip"
    words = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 1} if siglip else {"vocab_size": 17}
    if FAMILIES[name].pools_at_end:
        words |= {"bos_token_id": 2, "eos_token_id": 3}
    model = theirs(name, **words)
    model.save_pretrained(folder)
    processor(name).save_pretrained(folder)
    if siglip:
        save_siglip_tokenizer(folder)
    else:
        AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return model
