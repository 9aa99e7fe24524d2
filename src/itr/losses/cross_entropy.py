"""Cross entropy of a softmax over rows of a similarity matrix, with few passes over it and little kept."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def cross_entropy_rows(similarity: Tensor, temperature: Tensor | float, targets: Tensor) -> Tensor:
    """Cross entropy of soft targets, one value a row [R]: -sum_j p_ij log softmax_j(s_ij / t).

    Until the backward pass it keeps the logarithms of the softmax alone, where a chain of operations would keep the
    similarities too, and reads and writes the matrix half as often. It gives no second derivatives.

    Args:
        similarity: s [R, B].
        temperature: t > 0.
        targets: p >= 0 [R, B].
    """
    rows: Tensor = _CrossEntropyRows.apply(similarity, temperature, targets)
    return rows


class _CrossEntropyRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, similarity: Tensor, temperature: Tensor | float, targets: Tensor) -> Tensor:
        rate = torch.as_tensor(1 / temperature, dtype=similarity.dtype, device=similarity.device)
        logs = F.log_softmax(similarity * rate, dim=1)
        ctx.save_for_backward(logs, rate, targets)
        return -(targets * logs).sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        logs, rate, targets = ctx.saved_tensors
        factor = (incoming[0] * rate)[:, None]
        gradient = logs.exp().mul_(targets.sum(dim=1, keepdim=True) * factor).addcmul_(targets, factor, value=-1)
        temperature = goal = None
        if ctx.needs_input_grad[1]:  # logs stand for s / t here: they differ by what is the same in a whole row
            temperature = -rate * torch.dot(gradient.flatten(), logs.flatten())
        if ctx.needs_input_grad[2]:
            goal = -logs * incoming[0][:, None]
        return gradient, temperature, goal
