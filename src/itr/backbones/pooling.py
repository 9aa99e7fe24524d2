"""Pool the features of patches or words into one embedding per sample."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

PoolingKind = Literal["gpo", "mean", "max", "cls"]


class Pooling(nn.Module, ABC):
    """Pools the real tokens of each sample; values at padding have no effect."""

    @abstractmethod
    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Features [N, T, D] and their mask [N, T], bool, to embeddings [N, D]."""


class GPO(Pooling):
    """Generalized pooling operator: a learned weighted sum of the values of each dimension, sorted.

    pooled_d = sum_k theta_k max_k(d), theta = softmax_k(w . BiGRU(p_1 .. p_K)_k / temperature), with max_k(d) the k-th
    largest of the K values of dimension d and p_k the sinusoidal code of position k
    (Chen et al., CVPR 2021, https://arxiv.org/abs/2011.04305, equations 4 to 6). The weights depend on the number K of
    tokens alone.

    Args:
        position_dim: width of the positional code.
        hidden_dim: width of the GRU.
        temperature: temperature of the softmax over positions.
    """

    def __init__(self, position_dim: int = 32, hidden_dim: int = 32, temperature: float = 0.1) -> None:
        super().__init__()
        self.position_dim = position_dim
        self.temperature = temperature
        self.gru = nn.GRU(position_dim, hidden_dim, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(hidden_dim, 1, bias=False)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Features [N, T, D] and their mask [N, T], bool, to embeddings [N, D]; a row without tokens gives zeros."""
        lengths = mask.sum(dim=1)
        # [N, D, T]: sorting contiguous values is up to twice as fast, forward and backward.
        columns = features.masked_fill(~mask.unsqueeze(-1), -torch.inf).transpose(1, 2).contiguous()
        ranked = columns.sort(dim=2, descending=True).values.transpose(1, 2)
        ranked = ranked.masked_fill(~_within(lengths, features.shape[1]).unsqueeze(-1), 0.0)
        weights = self.weights(lengths, features.shape[1])
        return torch.einsum("ntd,nt->nd", ranked, weights.to(ranked.dtype))

    def weights(self, lengths: Tensor, num_positions: int) -> Tensor:
        """Weights of the sorted positions [N, T] for the numbers of tokens [N]; zero beyond each."""
        # A table of all lengths if that is less work; only shapes decide, so there is no synchronization.
        if num_positions < len(lengths):
            table = self._weights(torch.arange(1, num_positions + 1, device=lengths.device), num_positions)
            return table[lengths.clamp(min=1) - 1]
        return self._weights(lengths.clamp(min=1), num_positions)

    def _weights(self, lengths: Tensor, num_positions: int) -> Tensor:
        # The temperature multiplies rounding errors by ten, so this small computation runs without autocast.
        with torch.autocast(lengths.device.type, enabled=False):
            hidden = self._scan(lengths, num_positions)
            scores: Tensor = self.linear(hidden).squeeze(-1) / self.temperature
            return scores.masked_fill(~_within(lengths, num_positions), -torch.inf).softmax(dim=-1)

    def _scan(self, lengths: Tensor, num_positions: int) -> Tensor:
        """Mean of both directions of the GRU over the first `lengths` positions [R, T, H].

        Forward states are the same for every length; backward states start at the last token. So each length is a row
        shifted to end at T, which makes its backward states exact, and one extra row that starts at 0 gives the
        forward states for all. This needs no packing, hence no copy of the lengths to the host.
        """
        codes = positional_code(num_positions, self.position_dim, lengths.device).to(self.linear.weight.dtype)
        steps = torch.arange(num_positions, device=lengths.device)
        shift = (num_positions - lengths).unsqueeze(1)
        shifted = codes[(steps - shift).clamp(min=0)]
        states = self.gru(torch.cat([codes.unsqueeze(0), shifted]))[0]
        forward: Tensor
        backward: Tensor
        forward, backward = states.chunk(2, dim=-1)
        index = (steps + shift).clamp(max=num_positions - 1).unsqueeze(-1).expand(-1, -1, backward.shape[-1])
        return (forward[:1] + backward[1:].gather(1, index)) / 2


class MeanPooling(Pooling):
    """Mean of the tokens."""

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Features [N, T, D] and their mask [N, T], bool, to embeddings [N, D]."""
        total = features.masked_fill(~mask.unsqueeze(-1), 0.0).sum(dim=1)
        return total / mask.sum(dim=1, keepdim=True).clamp(min=1)


class MaxPooling(Pooling):
    """Largest value of each dimension over the tokens."""

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Features [N, T, D] and their mask [N, T], bool, to embeddings [N, D]; a row without tokens gives zeros."""
        largest = features.masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(dim=1)
        return largest.masked_fill(~mask.any(dim=1, keepdim=True), 0.0)


class FirstToken(Pooling):
    """The first token, which is the class token of ViT and BERT."""

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Features [N, T, D] to embeddings [N, D]; the mask is ignored."""
        return features[:, 0]


def make_pooling(kind: PoolingKind) -> Pooling:
    """The pooling of that name; raises ValueError for an unknown name."""
    kinds: dict[str, type[Pooling]] = {"gpo": GPO, "mean": MeanPooling, "max": MaxPooling, "cls": FirstToken}
    if kind not in kinds:
        raise ValueError(f"unknown pooling {kind!r}; choose one of {', '.join(kinds)}")
    return kinds[kind]()


def positional_code(num_positions: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Sinusoidal code of positions 0 .. T-1, sine at even and cosine at odd indices [T, dim], float32."""
    frequency = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10000.0) / dim))
    angle = torch.arange(num_positions, device=device).unsqueeze(1) * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim]


def _within(lengths: Tensor, num_positions: int) -> Tensor:
    """True at the first `lengths` positions [R, T]."""
    return torch.arange(num_positions, device=lengths.device) < lengths.unsqueeze(1)
