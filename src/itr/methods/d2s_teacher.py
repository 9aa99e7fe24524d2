"""What the first stage leaves to the second: its weights, and a frozen copy of the part that embeds captions."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from itr.backbones.base import Backbone
from itr.errors import UserError, refusing
from itr.types import Encoded, Tokens

log = logging.getLogger(__name__)


class FrozenText(nn.Module):
    """A backbone's text side as it is now: no gradient, always in evaluation, no vision tower.

    Its weights are in the checkpoint; a module that is built again from random weights has the same parts, so the
    checkpoint's fit.

    Args:
        backbone: what to copy; it stays as it is.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        # What stands in the memo is taken instead of a copy: the vision tower is never copied, nor the tokenizer.
        memo = {id(module): nn.Identity() for module in _unused_modules(backbone)}
        self.encoder: Backbone = copy.deepcopy(backbone, {**memo, id(backbone.tokenizer): backbone.tokenizer})
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FrozenText:
        """Stay in evaluation whatever is asked."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, text: Tokens) -> Tensor:
        """Embed captions [C, L], to [C, D]."""
        return self.encoder.encode_text(text).pooled


def load_stage1(backbone: Backbone, path: Path) -> None:
    """Put the weights of a first stage's checkpoint into the backbone, all of them.

    Raises:
        UserError: it is no checkpoint of itr, or of another backbone.
    """
    with refusing(f"D2S.stage1: {str(path)!r} is no checkpoint that `itr fit` wrote"):
        saved: Any = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        weights: dict[str, Tensor] = {str(name): value for name, value in saved["state_dict"].items()}
    prefix = "backbone."
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    try:
        backbone.load_state_dict(own, strict=True)
    except RuntimeError as error:
        lines = "; ".join(line.strip()[:200] for line in str(error).splitlines()[1:3])
        raise UserError(f"D2S.stage1: {str(path)!r} was trained with another backbone ({lines})") from error
    backbone.untrained = ()
    log.info("D2S starts from the first stage in %s", path)


def freeze_text_pooling(backbone: Backbone) -> None:
    """Freeze what only the pooled text depends on, for a method that throws it away.

    A parameter without a gradient would stop distributed training.
    """
    with _probed(backbone) as probe:
        pooled, words = probe(lambda text: text.pooled), probe(lambda text: text.tokens)
    for name, parameter in backbone.named_parameters():
        if name in pooled - words:
            parameter.requires_grad_(False)


def _unused_modules(backbone: Backbone) -> list[nn.Module]:
    """The largest parts with parameters that embedding a caption neither calls nor depends on."""
    called: set[nn.Module] = set()
    hooks = [m.register_forward_hook(lambda module, *_: called.add(module)) for m in backbone.modules()]
    try:
        with _probed(backbone) as probe:
            names = probe(lambda text: text.pooled)
    finally:
        for hook in hooks:
            hook.remove()
    used = {id(parameter) for name, parameter in backbone.named_parameters(remove_duplicate=False) if name in names}

    def idle(module: nn.Module) -> bool:
        parameters = list(module.parameters())
        return bool(parameters) and not any(id(p) in used for p in parameters) and called.isdisjoint(module.modules())

    def search(module: nn.Module) -> list[nn.Module]:
        return [found for child in module.children() for found in ([child] if idle(child) else search(child))]

    return search(backbone)


@contextmanager
def _probed(backbone: Backbone) -> Iterator[Callable[[Callable[[Encoded], Tensor]], set[str]]]:
    """Gives a function that tells the parameters on which an output for one caption depends.

    Backbone and random numbers are as before afterwards.
    """
    named = dict(backbone.named_parameters())
    trainable = {name: parameter.requires_grad for name, parameter in named.items()}
    modes = [(module, module.training) for module in backbone.modules()]
    device = next(iter(named.values())).device
    tokens = backbone.tokenizer(["a caption"])
    tokens = Tokens(tokens.ids.to(device), tokens.mask.to(device))

    def dependencies(output: Callable[[Encoded], Tensor]) -> set[str]:
        total = output(backbone.encode_text(tokens)).sum()
        gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
        return {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}

    try:
        backbone.eval().requires_grad_(True)
        with torch.inference_mode(False), torch.enable_grad():
            yield dependencies
    finally:
        for module, mode in modes:
            module.training = mode
        for name, parameter in named.items():
            parameter.requires_grad_(trainable[name])
