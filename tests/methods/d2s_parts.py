"""Small models, batches and trainers for the tests of D2S."""

from __future__ import annotations

import functools

import lightning.pytorch as pl
import torch

from itr.backbones import CLIP, VSE
from itr.data.datamodule import ShardData
from itr.methods import D2S
from itr.module import RetrievalModule
from itr.objectives import InfoNCE
from itr.types import Batch
from tiny import copy_of

SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VISION = {"model_type": "vit", "image_size": 32, "patch_size": 16, **SIZE}
TEXT = {"model_type": "bert", "pad_token_id": None, "max_position_embeddings": 48, **SIZE}
SMALL = {"num_prompts": 3, "depth": 1, "heads": 2, "mlp_ratio": 1.0}


def vse(seed: int = 0, **options) -> VSE:
    backbone = copy_of(first_vse(seed, **options))
    torch.manual_seed(seed)
    return backbone


def clip() -> CLIP:
    backbone = copy_of(first_clip())
    torch.manual_seed(0)
    return backbone


@functools.cache
def first_vse(seed: int, **options) -> VSE:
    torch.manual_seed(seed)
    return VSE(vision_config=VISION, text_config=TEXT, dim=8, **{"text_mlp": True, "text_norm": True, **options})


@functools.cache
def first_clip() -> CLIP:
    torch.manual_seed(0)
    return CLIP(
        config={
            "embed_dim": 8,
            "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
            "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
        }
    )


def build(backbone=None, **knobs) -> RetrievalModule:
    return RetrievalModule(backbone or vse(), InfoNCE(), [D2S(**{**SMALL, **knobs})])


def batch(module: RetrievalModule, dense: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(0)
    texts = ["a red circle", "two", "a blue square left of it", "the end"]
    long = ["a red circle and a small green square on a grey ground " * 4, "two triangles", "nothing", "a big dot"]
    return Batch(
        image=torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator),
        image_id=torch.arange(4),
        text=module.backbone.tokenizer(texts),
        text_id=torch.arange(4),
        image_index=torch.tensor([0, 1, 2, 3]),
        image_extra={"dense": module.backbone.tokenizer(long)} if dense else {},
    )


def trainer(folder, **options) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", max_epochs=1, default_root_dir=folder, logger=False, enable_progress_bar=False,
        enable_model_summary=False, limit_train_batches=2, limit_val_batches=0, **options,
    )  # fmt: skip


def data(scenes) -> ShardData:
    return ShardData(str(scenes), batch_size=4, num_workers=0)
