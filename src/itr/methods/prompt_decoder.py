"""Learnable prompts that turn the words of a caption into one embedding, by a joint decoder or by cross-attention."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itr.backbones.pooling import PoolingKind, make_pooling, positional_code

Placement = Literal["prefix", "postfix", "surround"]


class PromptAttention(nn.Module):
    """Multi-head attention of queries to a context, which may be the same sequence.

    softmax(Q K' / sqrt(D / H)) V for each of H heads, with a projection before and one after
    (Vaswani et al., 2017, https://arxiv.org/abs/1706.03762, equation 1).

    Args:
        dim: width D, a multiple of `heads`.
        heads: number of heads H.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """Attend from queries [N, Q, D] to a context [N, T, D].

        Args:
            queries: inputs of the queries.
            context: inputs of the keys and values; None for self-attention.
            mask: False where attention is not allowed [N, T], bool; None to allow all.
        """
        if context is None:
            parts: tuple[Tensor, ...] = self.qkv(queries).chunk(3, dim=-1)
        else:
            width = queries.shape[-1]
            weights, biases = self.qkv.weight.split([width, 2 * width]), self.qkv.bias.split([width, 2 * width])
            parts = (F.linear(queries, weights[0], biases[0]), *F.linear(context, weights[1], biases[1]).chunk(2, -1))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)  # [N, H, ., D/H]
        allowed = None if mask is None else mask[:, None, None, :]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        result: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return result


class PromptBlock(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = round(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim)
        self.attention = PromptAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Transform features [N, T, D], attending only where `mask` [N, T] is True."""
        features = features + self.attention(self.norm1(features), None, mask)
        change: Tensor = self.fc2(F.gelu(self.fc1(self.norm2(features))))
        return features + change


class PromptDecoder(nn.Module):
    """A transformer over words and learnable prompts in one sequence; the prompts' outputs are pooled.

    p = pool_k(LayerNorm(Decoder([w_1 .. w_L ; q_1 .. q_K]))_k), q_k ~ N(0, 1) at initialization
    (D2S-VSE, ICCV 2025, https://github.com/liuyyy111/d2s-vse).

    NOTE: the authors' decoder has no positions, and attention alone ignores order, so the three placements are the same
    network, although the paper reports different results for them. Here words and prompts get sinusoidal position
    codes, unless `positions` is False.

    NOTE: the authors' decoder also attends to padding, so an embedding depends on the longest caption of its batch.
    Here it does so only with `attend_padding`, for their checkpoints.

    Args:
        dim: width D of words and prompts.
        num_prompts: number K of prompts.
        depth: number of blocks.
        heads: attention heads of each block.
        mlp_ratio: hidden width of the MLP relative to D.
        placement: prompts before the words, after them, or half and half.
        pooling: how the K outputs are pooled.
        positions: add positions to words and prompts.
        attend_padding: also attend to padding.
        gain: initial weight of the last LayerNorm; with 0, p is 0 at the start of training.
    """

    def __init__(
        self,
        dim: int,
        num_prompts: int = 100,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        placement: Placement = "surround",
        pooling: PoolingKind = "mean",
        positions: bool = True,
        attend_padding: bool = False,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        before = {"prefix": num_prompts, "postfix": 0, "surround": num_prompts // 2}[placement]
        self.split = [before, num_prompts - before]
        self.positions = positions
        self.attend_padding = attend_padding
        self.prompts = nn.Parameter(torch.randn(num_prompts, dim))
        self.blocks = nn.ModuleList(PromptBlock(dim, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        nn.init.constant_(self.norm.weight, gain)
        self.pool = make_pooling(pooling)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        """Turn word features [C, L, D] with their mask [C, L], bool, into embeddings [C, D]."""
        first, last = self.prompts.expand(len(words), -1, -1).split(self.split, dim=1)
        features = torch.cat([first, words.to(first.dtype), last], dim=1)  # [C, K + L, D], in full precision
        if self.positions:
            features = features + self._codes(mask, features)
        allowed = None if self.attend_padding else F.pad(mask, tuple(self.split), value=True)
        for block in self.blocks:
            features = block(features, allowed)
        outputs = torch.cat([features[:, : self.split[0]], features[:, features.shape[1] - self.split[1] :]], dim=1)
        return _pool(self.pool, self.norm(outputs))

    def _codes(self, mask: Tensor, features: Tensor) -> Tensor:
        """Position codes [C, K + L, D]; padding is not counted, so it does not shift the positions."""
        allowed = F.pad(mask, tuple(self.split), value=True)
        index = allowed.cumsum(dim=1) - 1
        codes = positional_code(features.shape[1], features.shape[2], features.device).to(features.dtype)
        return codes[index.clamp(min=0)]


class CrossPrompts(nn.Module):
    """Learnable prompts that attend to the words once and are then pooled.

    p = pool_k(q_k + Attention(q_k, w_1 .. w_L)), the variant of D2S-VSE without a decoder (ICCV 2025,
    https://github.com/liuyyy111/d2s-vse).

    Args:
        dim: width D of words and prompts.
        num_prompts: number K of prompts.
        heads: attention heads.
        pooling: how the K outputs are pooled.
        attend_padding: also attend to padding, as the authors' code does.
    """

    def __init__(
        self, dim: int, num_prompts: int, heads: int, pooling: PoolingKind = "mean", attend_padding: bool = False
    ) -> None:
        super().__init__()
        self.attend_padding = attend_padding
        self.prompts = nn.Parameter(torch.randn(num_prompts, dim))
        self.attention = PromptAttention(dim, heads)
        self.pool = make_pooling(pooling)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        """Turn word features [C, L, D] with their mask [C, L], bool, into embeddings [C, D]."""
        prompts = self.prompts.expand(len(words), -1, -1)
        attended = self.attention(prompts, words.to(prompts.dtype), None if self.attend_padding else mask)
        return _pool(self.pool, prompts + attended)


def _pool(pool: nn.Module, outputs: Tensor) -> Tensor:
    """Pool all K outputs [C, K, D] to [C, D]."""
    embedding: Tensor = pool(outputs, torch.ones(outputs.shape[:2], dtype=torch.bool, device=outputs.device))
    return embedding
