"""The MLP over words that D2S-VSE adds to their projection."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedBatchNorm(nn.Module):
    """Batch normalization over the real tokens of [N, T, D], with the parameters of `nn.BatchNorm1d`.

    It is not a subclass, because `sync_batchnorm` would replace it with a layer that has no mask.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, dim: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Features [N, T, D] normalized by the statistics of the tokens where the mask [N, T] is True."""
        features = features.to(
            self.weight.dtype
        )  # sums over a batch of words overflow or lose precision in half precision
        mean, var = self.running_mean, self.running_var
        if self.training:
            real = mask.unsqueeze(-1)
            count = real.sum().clamp(min=1)
            mean = features.masked_fill(~real, 0.0).sum((0, 1)) / count
            var = (features - mean).masked_fill(~real, 0.0).square().sum((0, 1)) / count
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * count / (count - 1).clamp(min=1), self.momentum)
        return (features - mean) * torch.rsqrt(var + self.eps) * self.weight + self.bias


class WordMLP(nn.Module):
    """Two layers over each word, W -> D / 2 -> D, added to the projected word.

    NOTE: the authors also normalize over padding, so their statistics depend on the padding of a batch; their second,
    unused normalization is omitted.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, dim // 2)
        self.norm = MaskedBatchNorm(dim // 2)
        self.out = nn.Linear(dim // 2, dim)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        """Words [C, L, W] and their mask [C, L] to the shared width [C, L, D]."""
        residual: Tensor = self.out(F.relu(self.norm(self.hidden(words), mask)))
        return residual
