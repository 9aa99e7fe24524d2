"""Which parameters does an output depend on? Found by one backward pass, without data where that is possible."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

Run = Callable[[nn.Module, torch.device], Tensor]


def unused_parameters(module: nn.Module, run: Run) -> tuple[int, set[str]]:
    """The trainable parameters that `run(module, device)` [..., W] does not depend on.

    Returns:
        The width W, and the names of the parameters.
    """
    try:
        return _unused(copy.deepcopy(module).to("meta").eval(), run, torch.device("meta"))
    except (NotImplementedError, RuntimeError):  # architectures that depend on values need real ones
        training = module.training
        device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
        found = _unused(module.eval(), run, device)
        module.train(training)
        return found


def used_names(module: nn.Module, run: Run) -> set[str]:
    """The names in the `state_dict` that `run(module, device)` may depend on: used parameters, and all buffers.

    If the module cannot run, that is all names, also of parameters that its `state_dict` omits.
    """
    names = {*module.state_dict(), *(name for name, _ in module.named_parameters())}
    try:
        return names - unused_parameters(module, run)[1]
    except Exception:  # architectures raise various types, and their reason matters only where they are used
        return names


def _unused(module: nn.Module, run: Run, device: torch.device) -> tuple[int, set[str]]:
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    with torch.enable_grad():  # gradients may be disabled where a checkpoint is opened
        features = run(module, device)
        gradients = torch.autograd.grad(features.sum(), list(named.values()), allow_unused=True)
    return features.shape[-1], {name for name, gradient in zip(named, gradients, strict=True) if gradient is None}
