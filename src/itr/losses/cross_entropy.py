"""Cross entropy of a softmax over rows of a similarity matrix, with few passes over it and little kept."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def cross_entropy(similarity: Tensor, temperature: Tensor | float, targets: Tensor) -> Tensor:
    """Cross entropy of soft targets, summed over rows []: -sum_ij p_ij log softmax_j(s_ij / t).

    Its gradient is known as soon as the softmax is, and is all that is kept until the backward pass, where a chain of
    operations would keep similarities, softmax and targets, and pass over them twice as often. It gives no second
    derivatives.

    Args:
        similarity: s [R, B].
        temperature: t > 0.
        targets: p >= 0 [R, B], whose rows sum to 1.
    """
    if not isinstance(temperature, Tensor):
        temperature = similarity.new_full((), temperature)
    total: Tensor = _CrossEntropy.apply(similarity, temperature, targets)
    return total


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, similarity: Tensor, temperature: Tensor, targets: Tensor) -> Tensor:
        rate = temperature.reciprocal().to(similarity.dtype)
        logs = F.log_softmax(similarity * rate, dim=1)
        total = (targets * logs).sum().neg_()
        slope = logs.exp().sub_(targets)  # by s / t, as each row of targets sums to 1
        kept = logs if ctx.needs_input_grad[2] else None
        whole = None
        if ctx.needs_input_grad[1]:
            # By t; the logs stand for s / t here, since they differ by what is the same in a row, and slopes sum to 0.
            product = logs.mul_(slope) if kept is None else logs * slope  # in place: at scale a matrix less at the peak
            whole = product.sum()
        ctx.save_for_backward(slope, whole, rate, kept)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        slope, whole, rate, logs = ctx.saved_tensors
        factor = incoming[0] * rate
        return (
            slope * factor,
            None if whole is None else (factor * whole).neg_(),
            None if logs is None else logs * -incoming[0],
        )
