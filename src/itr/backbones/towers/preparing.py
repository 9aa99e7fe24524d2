"""Set up towers of transformers: freeze unused parameters, recompute activations, and limit the length of captions."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from itr.backbones.towers.building import config_of, token_features
from itr.errors import UserError, quoted
from itr.weights.dependencies import Run, unused_parameters

log = logging.getLogger(__name__)


def prepare_tower(tower: nn.Module, inputs: dict[str, Any], own: bool = False) -> int:
    """Freeze the parameters that the features of a tower do not depend on, and return the width of these features.

    Heads for other uses (a pooler, the norm after it) would never get a gradient, which is an error in distributed
    training. They are found by one backward pass without data, on the meta device.

    Args:
        tower: the tower.
        inputs: the arguments of its forward pass.
        own: whether its own pooled features are used, besides those of its tokens.

    Raises:
        UserError: the tower cannot process these inputs, or does not pool tokens to features of their width.
    """

    def run(module: nn.Module, device: torch.device) -> Tensor:
        output = module(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()})
        tokens = token_features(output)
        return torch.cat([tokens[:, 0], pooled_features(output)]) if own else tokens

    try:
        return freeze_unused(tower, run)
    except UserError:
        raise
    except Exception as error:  # architectures raise various types for inconsistent sizes
        shapes = [list(value.shape) for value in inputs.values() if isinstance(value, Tensor)]
        model_type = config_of(tower).model_type
        raise UserError(f"the {model_type} tower cannot process inputs of shape {shapes}: {quoted(error)}") from error


def pooled_features(output: Any) -> Tensor:
    """The features that a tower itself has pooled [N, W].

    Raises:
        UserError: it has none, or they have another width than those of its tokens.
    """
    pooled: Tensor | None = getattr(output, "pooler_output", None)
    width = token_features(output).shape[-1]
    if pooled is None or pooled.flatten(1).shape[1] != width:
        found = "does not pool" if pooled is None else f"pools to another width than its tokens' {width}"
        raise UserError(f"pooling `own`: the tower {found}; choose gpo, mean, max or cls")
    return pooled.flatten(1)


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


def check_vocabulary(needed: int, text_config: Any, owner: str) -> None:
    """Refuse a tokenizer of `needed` tokens for a text tower with fewer; `owner` is what has a tokenizer that fits."""
    known = int(text_config.vocab_size)
    if needed > known:
        raise UserError(
            f"the tokenizer has {needed} tokens but the text tower only {known}; use the tokenizer that belongs to "
            f"{owner}"
        )


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
