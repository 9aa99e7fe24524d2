"""Attention masks of transformers' towers, made without asking the device for a value."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from itr.private_api.transformers import attention_of

NAME = "itr_sdpa"


def ask_nothing(tower: nn.Module) -> None:
    """Let a tower with scaled-dot-product attention use every mask that it is given.

    transformers leaves out a mask that hides nothing. To know that, it asks the device in each forward pass, which then
    has nothing to do until the host has heard the answer and caught up. Towers with attention of their own are left
    alone.
    """
    config: Any = getattr(tower, "config", None)
    if attention_of(config) != "sdpa":
        return
    _register()
    tower.set_attn_implementation(NAME)  # type: ignore[operator]


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(NAME, sdpa_attention_forward)
    AttentionMaskInterface.register(NAME, _mask)


def _mask(*args: Any, attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
    """The mask that scaled-dot-product attention takes; None only where there was none [C, L]."""
    from transformers.masking_utils import sdpa_mask

    if attention_mask is not None:
        options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask: Tensor | None = sdpa_mask(*args, attention_mask=attention_mask, **options)
    return mask
