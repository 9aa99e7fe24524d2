"""Cross entropy of a softmax over rows of a similarity matrix, with few passes over memory and little stored."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def cross_entropy(similarity: Tensor, temperature: Tensor | float, targets: Tensor) -> Tensor:
    """Cross entropy of soft targets, summed over rows []: -sum_ij p_ij log softmax_j(s_ij / t).

    The gradient is computed along with the softmax and is all that is stored for the backward pass; a chain of separate
    operations would store similarities, softmax and targets, and pass over them twice as often. Second derivatives are
    not supported.

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
        slope = logs.exp().sub_(targets)  # gradient by s / t, as each row of targets sums to 1
        saved_logs = logs if ctx.needs_input_grad[2] else None
        slope_sum = None
        if ctx.needs_input_grad[1]:
            # Gradient by t. logs replace s / t: they differ by a constant per row, and the slopes of a row sum to 0.
            product = (
                logs.mul_(slope) if saved_logs is None else logs * slope
            )  # in place: saves a matrix of peak memory
            slope_sum = product.sum()
        ctx.save_for_backward(slope, slope_sum, rate, saved_logs)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        slope, slope_sum, rate, logs = ctx.saved_tensors
        factor = incoming[0] * rate
        return (
            slope * factor,
            None if slope_sum is None else (factor * slope_sum).neg_(),
            None if logs is None else logs * -incoming[0],
        )
