"""Options that make a backbone small enough for a test, and a checkpoint of such a model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TypeVar

from itr.backbones import Backbone
from itr.commands.quieten import quieten
from itr.runs.command import TrainingCLI

B = TypeVar("B", bound=Backbone)
TINY_VSE = [
    "--model.backbone=VSE",
    "--model.backbone.vision_config={model_type: vit, image_size: 32, patch_size: 16, hidden_size: 32, "
    "num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}",
    "--model.backbone.text_config={model_type: bert, hidden_size: 32, num_hidden_layers: 1, "
    "num_attention_heads: 2, intermediate_size: 32, pad_token_id: null}",
    "--model.backbone.dim=32",
]

STILL_VSE = [  # as TINY_VSE, without dropout or augmentation of the model
    TINY_VSE[0],
    TINY_VSE[1].replace("}", ", hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}"),
    TINY_VSE[2].replace("}", ", hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}"),
    TINY_VSE[3],
    "--model.backbone.visual_token_drop=0",
    "--model.backbone.word_mask=0",
]

TINY_CLIP = [
    "--model.backbone=CLIP",
    "--model.backbone.config={embed_dim: 16, "
    "vision_cfg: {image_size: 32, layers: 1, width: 32, head_width: 16, patch_size: 16}, "
    "text_cfg: {context_length: 32, vocab_size: 49408, width: 16, heads: 2, layers: 1}}",
]

TINY_DUAL = [
    "--model.backbone=Dual",
    "--model.backbone.config={model_type: clip, projection_dim: 16, "
    "vision_config: {image_size: 32, patch_size: 16, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, "
    "intermediate_size: 32}, "
    "text_config: {vocab_size: 49408, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, "
    "intermediate_size: 32, eos_token_id: 49407}}",
]


def copy_of(backbone: B) -> B:
    """A backbone of its own, in a small part of the time that building one takes; tokenizers don't change."""
    return copy.deepcopy(backbone, {id(backbone.tokenizer): backbone.tokenizer})


def save_checkpoint(folder: Path, shards: Path, *options: str) -> str:
    """A checkpoint with random weights, of a tiny VSE and whatever else `options` say."""
    quieten()
    where = [f"--data.root={shards}", f"--trainer.default_root_dir={folder}", "--trainer.accelerator=cpu"]
    cli = TrainingCLI([*TINY_VSE, *options, *where, "--trainer.logger=false", "--seed_everything=1"], run=False)
    cli.trainer.strategy.connect(cli.model)
    cli.trainer.save_checkpoint(folder / "model.ckpt")
    return str(folder / "model.ckpt")
