"""Parts of VSE: its towers with their inputs, and what it trains on top of them."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from itr.backbones.base import ImageSpec
from itr.backbones.pooling import MeanPooling, Pooling, PoolingKind, make_pooling
from itr.backbones.towers import make_tower, pretrained_preprocessing, untrained_image_spec
from itr.backbones.towers.building import (
    SMALL_TEXT,
    TowerKind,
    config_of,
    interpolation,
    native_image_size,
    token_features,
)
from itr.backbones.towers.preparing import check_vocabulary, enable_checkpointing, pooled_features, prepare_tower
from itr.backbones.towers.training import freeze

VSEPooling = PoolingKind | Literal["own", "tower_mean"]


class PooledFirst(nn.Module):
    """Pooling before the projection, of which no tokens are left.

    Args:
        own: take what the tower itself has pooled; otherwise the mean of its tokens, as sentence encoders and
            EfficientNet are trained.
    """

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.own = own

    def pooled(self, output: Any, mask: Tensor | None) -> Tensor:
        """One row [N, W] for what a tower returned; its tokens [N, T, W] are real where the mask [N, T] is True."""
        if self.own:
            return pooled_features(output)
        tokens = token_features(output)
        pooled: Tensor = tokens.mean(dim=1) if mask is None else MeanPooling()(tokens[:, : mask.shape[1]], mask)
        return pooled


def make_text_tower(name: str | None, config: dict[str, Any] | None, vocabulary: int) -> nn.Module:
    """A pretrained text tower, or one from a config; its vocabulary must cover the tokenizer's."""
    tower = make_tower("text", name, {"vocab_size": vocabulary, **(config or SMALL_TEXT)})
    check_vocabulary(vocabulary, config_of(tower), "the tower")
    return tower


def tower_image_spec(tower: nn.Module, name: str | None, image_size: int | None) -> ImageSpec:
    """The image format of a vision tower: that of its name, if it is pretrained."""
    size = image_size or native_image_size(tower)
    return untrained_image_spec(tower, size) if name is None else pretrained_preprocessing(name, tower, size).spec


def vision_inputs(tower: nn.Module, pixels: Tensor) -> dict[str, Any]:
    """The arguments of a vision tower's forward pass; positions are interpolated to another size of images."""
    return {"pixel_values": pixels, **interpolation(tower, pixels.shape[-1])}


def set_up(
    kind: TowerKind, tower: nn.Module, inputs: dict[str, Any], pooling: VSEPooling, frozen: bool | int, recompute: bool
) -> int:
    """Freeze a tower as the option `freeze_KIND` says, and what example inputs do not use; returns its outputs' width.

    What is trained can recompute its activations.
    """
    width = prepare_tower(tower, inputs, pooling == "own")
    if recompute and frozen is not True:
        enable_checkpointing(tower)
    freeze(tower, frozen, f"freeze_{kind}")
    return width


def make_vse_pooling(kind: VSEPooling) -> Pooling | PooledFirst:
    """The pooling of that name."""
    return PooledFirst(kind == "own") if kind == "own" or kind == "tower_mean" else make_pooling(kind)


def make_projection(width: int, dim: int, hidden: int | None, dropout: float) -> nn.Module:
    """A linear layer W -> D, or two layers W -> hidden -> D with GELU and dropout between them."""
    if hidden is None:
        return _linear(width, dim)
    return nn.Sequential(_linear(width, hidden), nn.GELU(), nn.Dropout(dropout), _linear(hidden, dim))


def as_trained(output: Tensor, head: nn.Module) -> Tensor:
    """A tower's output in the precision of the head's weights; autocast changes it further."""
    return output.to(next(head.parameters()).dtype)


def _linear(width: int, dim: int) -> nn.Linear:
    layer = nn.Linear(width, dim)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
