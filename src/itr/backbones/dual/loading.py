"""Build a dual encoder of transformers from a config, or load it with its published weights."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from itr.backbones.dual.families import SCALES, Family, family_of, probe
from itr.backbones.towers.building import avoid_mask_sync, native_image_size
from itr.backbones.towers.configs import checked_config
from itr.errors import UserError, quoted
from itr.weights.hub import hub_or_cache, not_loaded
from itr.weights.pretrained import load_pretrained, source_of

log = logging.getLogger(__name__)

SMALL_DUAL: dict[str, Any] = {
    "model_type": "clip",
    "projection_dim": 128,
    "vision_config": {
        "image_size": 64, "patch_size": 8, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 256,
    },
    "text_config": {
        "vocab_size": 49408, "max_position_embeddings": 77, "hidden_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 256, "eos_token_id": 49407,
    },
}  # fmt: skip


def build_dual(config: dict[str, Any]) -> tuple[nn.Module, Family]:
    """A dual encoder with random weights in float32, and its family.

    Raises:
        UserError: the config is invalid, or of no family.
    """
    family = family_of(str(config.get("model_type", "")), "config")
    settings = _without_decoder(checked_config("config", config))
    try:
        model: nn.Module = _class_of(family)(settings)
    except Exception as error:  # architectures raise various types for inconsistent sizes
        raise UserError(f"config {config}: could not build this dual encoder ({quoted(error)})") from error
    return _prepared(model.float()), family


def load_dual(name: str) -> tuple[nn.Module, Family]:
    """The dual encoder of a folder or of a name on the hub, with its weights in float32, and its family.

    Raises:
        UserError: it could not be loaded, weights that it needs are missing or do not fit, or it is of no family.
    """
    from transformers import AutoConfig

    try:
        with hub_or_cache(name):
            config: Any = AutoConfig.from_pretrained(name)
            family = family_of(config.model_type, f"model {name!r}")
            from_pretrained = _class_of(family).from_pretrained
            load = partial(from_pretrained, config=_without_decoder(config), dtype=torch.float32, **source_of(name))

            def run(model: Any, device: torch.device) -> Tensor:
                return probe(model, family, native_image_size(model.vision_model) or 224, device)

            return _prepared(load_pretrained(load, name, "the dual encoder", run)), family
    except UserError:
        raise
    except Exception as error:  # the hub, its clients and weight readers raise many unrelated types
        raise not_loaded(
            "dual encoder", name, name, error, None, "To train a model from scratch, define config."
        ) from error


def processor_of(name: str | None, family: Family) -> Any:
    """The image processor of a folder or name; the family's if there is no name, or if the folder has none."""
    import transformers

    if name is not None:
        try:
            with hub_or_cache(name):
                return transformers.AutoImageProcessor.from_pretrained(name)
        except (OSError, ValueError):
            log.warning("%s has no image processor: images are prepared as by %s", name, family.processor)
    return getattr(transformers, family.processor)(**family.processor_options)


def take_scale(model: Any) -> tuple[float | None, float | None]:
    """Remove what scales the product of two embeddings, which belongs to the objective.

    Returns:
        Temperature and bias; None if the model has none.
    """
    scale, bias = getattr(model, "logit_scale", None), getattr(model, "logit_bias", None)
    temperature = getattr(model, "temperature", None)
    if scale is not None:
        temperature = (-scale.detach()).exp()
    for name in SCALES:
        if hasattr(model, name):
            delattr(model, name)
    return (
        None if temperature is None else float(temperature.detach()),
        None if bias is None else float(bias.detach()),
    )


def _class_of(family: Family) -> Any:
    import transformers

    return getattr(transformers, family.model)


def _without_decoder(config: Any) -> Any:
    """BLIP's text tower without the layers that attend to an image, which its embedding does not use."""
    if config.model_type == "blip":
        config.text_config.is_decoder = False
    return config


def _prepared(model: nn.Module) -> nn.Module:
    if hasattr(model, "itm_head"):  # BLIP scores pairs by it
        del model.itm_head
    avoid_mask_sync(model)
    return model
