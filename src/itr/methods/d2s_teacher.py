"""Transfer of the first stage to the second: its weights, and a frozen copy of its text encoder."""

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
from itr.files.archives import check_intact
from itr.types import Encoded, Tokens
from itr.weights.matching import fill

log = logging.getLogger(__name__)


class FrozenText(nn.Module):
    """A frozen copy of a backbone's text encoder: no gradients, always in eval mode, no vision tower.

    Its weights are saved in the checkpoint; a module rebuilt from random weights has the same parts, so the weights
    fit.

    Args:
        backbone: backbone to copy; it is not changed.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        # `deepcopy` takes entries of the memo instead of copying: so neither vision tower nor tokenizer is copied.
        memo = {id(module): nn.Identity() for module in _unused_modules(backbone)}
        self.encoder: Backbone = copy.deepcopy(backbone, {**memo, id(backbone.tokenizer): backbone.tokenizer})
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FrozenText:
        """Stay in eval mode whatever `mode` is."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, text: Tokens) -> Tensor:
        """Embed captions [C, L] as [C, D]."""
        return self.encoder.encode_text(text).pooled


def load_stage1(backbone: Backbone, path: Path) -> None:
    """Load all backbone weights from a checkpoint of the first stage.

    Raises:
        UserError: the file is not an itr checkpoint, or has a different backbone.
    """
    check_intact(path)
    with refusing(f"D2S.stage1: {str(path)!r} is not a checkpoint of `itr fit`"):
        saved: Any = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        weights: dict[str, Tensor] = {str(name): value for name, value in saved["state_dict"].items()}
    prefix = "backbone."
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    try:
        fill(backbone, own, str(path), "the backbone")
    except UserError as error:
        raise UserError(f"D2S.stage1: {str(path)!r} was trained with a different backbone ({error})") from error
    backbone.untrained = ()
    log.info("D2S starts from the first stage in %s", path)


def freeze_text_pooling(backbone: Backbone) -> None:
    """Freeze the parameters that affect only the pooled text embedding, for a method that discards it.

    Trainable parameters without a gradient would stop distributed training.
    """
    with _probed(backbone) as probe:
        pooled, words = probe(lambda text: text.pooled), probe(lambda text: text.tokens)
    for name, parameter in backbone.named_parameters():
        if name in pooled - words:
            parameter.requires_grad_(False)


def _unused_modules(backbone: Backbone) -> list[nn.Module]:
    """The largest modules with parameters that are neither called nor used when a caption is embedded."""
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
    """Yield a function that returns the names of the parameters on which an output for a caption depends.

    The state of the backbone is restored afterwards.
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
