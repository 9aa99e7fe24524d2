"""Set up towers of transformers: freeze unused parameters, and read limits and image formats."""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
from torch import Tensor, nn

from itr.backbones.base import ImageSpec
from itr.backbones.tower_building import config_of, token_features
from itr.errors import UserError, quoted
from itr.weights.dependencies import Run, unused_parameters

log = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RESAMPLING: dict[Any, Literal["bicubic", "bilinear"]] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def prepare_tower(tower: nn.Module, inputs: dict[str, Any]) -> int:
    """Freeze the parameters that the token features do not depend on, and return the width of these features.

    Heads for other uses (a pooler, the norm after it) would never get a gradient, which is an error in distributed
    training. They are found by one backward pass without data, on the meta device.

    Raises:
        UserError: the tower cannot process these inputs.
    """

    def run(module: nn.Module, device: torch.device) -> Tensor:
        return token_features(module(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}))

    try:
        return freeze_unused(tower, run)
    except Exception as error:  # architectures raise various types for inconsistent sizes
        shapes = [list(value.shape) for value in inputs.values() if isinstance(value, Tensor)]
        model_type = config_of(tower).model_type
        raise UserError(f"the {model_type} tower cannot process inputs of shape {shapes}: {quoted(error)}") from error


def freeze_unused(module: nn.Module, run: Run) -> int:
    """Freeze the parameters that `run(module, device)` [..., W] does not depend on; returns its width W."""
    width, unused = unused_parameters(module, run)
    for name, parameter in module.named_parameters():
        if name in unused:
            parameter.requires_grad_(False)
    return width


def enable_checkpointing(tower: nn.Module) -> None:
    """Recompute activations in the backward pass, if the architecture supports it."""
    if getattr(tower, "supports_gradient_checkpointing", False):
        # transformers renamed it in a minor version and warns about the old name.
        enable: Any = getattr(tower, "activation_checkpointing_enable", None) or tower.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    else:
        log.warning("gradient_checkpointing is ignored: the %s tower does not support it", config_of(tower).model_type)


def caption_limit(tower: nn.Module, tokenizer_limit: int, requested: int | None) -> int:
    """Longest caption in tokens that tower and tokenizer support, or the requested length.

    Raises:
        UserError: the requested length exceeds the tower's positions, or is below a start, a word and an end token.
    """
    positions: Any = getattr(config_of(tower), "max_position_embeddings", None) or tokenizer_limit
    padding_index = getattr(getattr(tower, "embeddings", None), "padding_idx", None)
    if padding_index is not None:  # RoBERTa and similar models count positions from after the padding id
        positions -= padding_index + 1
    if requested is None:
        return int(min(positions, tokenizer_limit))
    if not 3 <= requested <= positions:
        raise UserError(f"max_words={requested} must be from 3 to {positions} for this text tower")
    return requested


def allow_only_one(**alternatives: Any) -> None:
    """Raise UserError if more than one of the arguments is given."""
    given = [name for name, value in alternatives.items() if value is not None]
    if len(given) > 1:
        raise UserError(
            f"set {' or '.join(given)}, not both; to unset a value of a config, pass "
            f"{' or '.join(f'--model.backbone.{name} null' for name in given)}"
        )


def check_fractions(**fractions: float) -> None:
    """Raise UserError if an argument is not between 0 and 1."""
    for name, value in fractions.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name}={value} must be between 0 and 1")


def pretrained_image_spec(name: str, size: int | None) -> ImageSpec:
    """Image format of a pretrained tower; ImageNet's mean and standard deviation if its folder does not define them."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        config: dict[str, Any] = ImageProcessingMixin.get_image_processor_dict(name)[0]
    except (OSError, ValueError):
        log.warning(
            "%s has no preprocessor_config.json: images are normalized with ImageNet's mean and standard deviation",
            name,
        )
        config = {}
    extent = config.get("crop_size") or config.get("size") or {}
    if isinstance(extent, dict):
        extent = extent.get("height") or extent.get("shortest_edge")
    squash = isinstance(config.get("size"), dict) and "shortest_edge" not in config["size"]
    mean, std = config.get("image_mean") or IMAGENET_MEAN, config.get("image_std") or IMAGENET_STD
    if config.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if config and config.get("resample") not in RESAMPLING:
        log.warning(
            "%s: its preprocessing has the resampling %s, which is not supported: images are resized with bicubic "
            "interpolation, unless `interpolation` is set", name, config.get("resample", "of an unnamed default"),
        )  # fmt: skip
    return ImageSpec(
        size=int(size or extent or 224),
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        std=(float(std[0]), float(std[1]), float(std[2])),
        interpolation=RESAMPLING.get(config.get("resample"), "bicubic"),
        resize="squash" if squash else "shortest",
    )
