"""Loaders over shards as a run makes them, without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from itr.backbones import VSE
from itr.data.loading.pipeline import ShardLoader, ShardStream
from itr.data.loading.reading import ReadOptions
from itr.data.shards.locations import find_split
from itr.data.shards.schema import Split
from itr.images.transforms import Augmentation, EvaluationTransform, TrainingTransform
from itr.types import Batch


def small_backbone(**options: Any) -> VSE:
    """A backbone for its image size and tokenizer."""
    vision = {"model_type": "vit", "image_size": 16, "patch_size": 8, "hidden_size": 8, "num_hidden_layers": 1}
    text: dict[str, Any] = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return VSE(
        vision_config={**vision, "num_attention_heads": 1}, text_config={**text, "pad_token_id": None}, dim=8, **options
    )


def read_options(split: Split, **settings: Any) -> ReadOptions:
    """Batches of four."""
    return ReadOptions(split, **{
        "captions": 1, "batch_items": 4, "seed": 0, "shuffle_buffer": 10, "max_pixels": 10**6, "max_skipped": 3,
        **settings,
    })  # fmt: skip


def make_loader(
    folder: Path | str,
    split: str,
    backbone: VSE,
    training: bool,
    position: tuple[int, int] = (0, 0),
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    start_method: str | None = None,
    strict: bool = True,
    **settings: Any,
) -> ShardLoader:
    """The batches of four of one process."""
    reading = read_options(find_split(folder, split, strict=strict), **settings)
    transform = TrainingTransform(backbone.image_spec, Augmentation()) if training else None
    transform = transform or EvaluationTransform(backbone.image_spec)
    stream = ShardStream(reading, training, transform, backbone.tokenizer, rank, world)
    return ShardLoader(stream, lambda: position, num_workers=workers, multiprocessing_context=start_method)


def same(first: Batch, second: Batch) -> bool:
    """Whether two batches are equal to the bit."""
    return all(
        torch.equal(getattr(first, name), getattr(second, name))
        for name in ("image", "image_id", "text_id", "image_index")
    ) and torch.equal(first.text.ids, second.text.ids)
