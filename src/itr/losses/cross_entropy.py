"""Cross entropy of a softmax over rows of a similarity matrix, with few passes over it and little kept."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def cross_entropy_rows(similarity: Tensor, temperature: Tensor | float, targets: Tensor) -> Tensor:
    """Cross entropy of soft targets, one value a row [R]: -sum_j p_ij log softmax_j(s_ij / t).

    Its gradient is known as soon as the softmax is, and is all that is kept until the backward pass, where a chain of
    operations would keep similarities, softmax and targets, and pass over them twice as often. It gives no second
    derivatives.

    Args:
        similarity: s [R, B].
        temperature: t > 0.
        targets: p >= 0 [R, B].
    """
    if not isinstance(temperature, Tensor):
        temperature = similarity.new_full((), temperature)
    rows: Tensor = _CrossEntropyRows.apply(similarity, temperature, targets)
    return rows


class _CrossEntropyRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, similarity: Tensor, temperature: Tensor, targets: Tensor) -> Tensor:
        rate = (1 / temperature).to(similarity.dtype)
        logs = F.log_softmax(similarity * rate, dim=1)
        value = -(targets * logs).sum(dim=1)
        slope = logs.exp().mul_(targets.sum(dim=1, keepdim=True)).sub_(targets)  # by s / t
        kept = logs if ctx.needs_input_grad[2] else None
        whole = None
        if ctx.needs_input_grad[1]:
            # By t; the logs stand for s / t here, since they differ by what is the same in a row, and slopes sum to 0.
            product = logs.mul_(slope) if kept is None else logs * slope  # in place: at scale a matrix less at the peak
            whole = product.sum(dim=1)
        ctx.save_for_backward(slope, whole, rate, kept)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        slope, whole, rate, logs = ctx.saved_tensors
        temperature = None if whole is None else -rate * (incoming[0] * whole).sum()
        return (
            slope * (incoming[0] * rate)[:, None],
            temperature,
            None if logs is None else -logs * incoming[0][:, None],
        )
