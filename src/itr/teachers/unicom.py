"""The ViT of UNICOM (An et al., ICLR 2023, https://arxiv.org/abs/2304.05884), CUSA's image teacher.

It has no class token: its features are all patches, normalized and concatenated, and its head turns them into the
pooled embedding. The architecture follows the official code, https://github.com/deepglint/unicom.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itr.commands.inputs import check_unicom
from itr.errors import refusing
from itr.weights.matching import Mismatch, fill, without_wrappers
from itr.weights.reading import read_weights

HEAD_WIDTH = 64


class UnicomAttention(nn.Module):
    """Self-attention without query, key and value biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD_WIDTH)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[I, P, W] to the same."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)  # [I, heads, P, W / heads]
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected


class UnicomBlock(nn.Module):
    """A pre-norm layer with ReLU6 in its MLP."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = UnicomAttention(width)
        layers = {"fc1": nn.Linear(width, hidden), "act": nn.ReLU6(), "fc2": nn.Linear(hidden, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        """[I, P, W] to the same."""
        x = x + self.attn(self.norm1(x))
        mixed: Tensor = x + self.mlp(self.norm2(x))
        return mixed


class Unicom(nn.Module):
    """The model for an official weights file, with the same parameter names.

    Args:
        image_size: side length of the images.
        patch: side length of a patch.
        width: width W of a token.
        depth: number of layers.
        hidden: width inside the MLP.
        dim: width of the pooled embedding.
    """

    def __init__(self, image_size: int, patch: int, width: int, depth: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.image_size = image_size
        patches = (image_size // patch) ** 2
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(3, width, patch, patch)))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches, width))
        self.blocks = nn.Sequential(*(UnicomBlock(width, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            nn.Linear(patches * width, width, bias=False),
            nn.BatchNorm1d(width, eps=2e-5),
            nn.Linear(width, dim, bias=False),
            nn.BatchNorm1d(dim, eps=2e-5),
        )

    def forward_features(self, image: Tensor) -> Tensor:
        """All tokens of normalized images [I, 3, H, H], concatenated [I, P x W]."""
        tokens = self.patch_embed(image).flatten(2).transpose(1, 2) + self.pos_embed
        normed: Tensor = self.norm(self.blocks(tokens).float())
        return normed.flatten(1)

    def forward(self, image: Tensor) -> Tensor:
        """The pooled embedding [I, D] of normalized images [I, 3, H, H]."""
        embedding: Tensor = self.feature(self.forward_features(image))
        return embedding


def load_unicom(path: str | Path) -> Unicom:
    """Load an official weights file (FP16-ViT-B-32.pt and others) in float32.

    Raises:
        UserError: the file does not exist, or is not such a file.
    """
    check_unicom(path)
    weights = read_weights(Path(path))
    with refusing(f"{path} is not a UNICOM ViT weights file"):
        needed = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight", "feature.2.weight")
        state = without_wrappers(weights.tensors, needed)
        if missing := tuple(name for name in needed if name not in state):
            Mismatch(missing, tuple(state)).refuse(str(path), "UNICOM's ViT")
        model = _unicom_of(state)
        fill(model, state, str(path), "UNICOM's ViT")
    return model


def _unicom_of(state: dict[str, Tensor]) -> Unicom:
    """A model of the sizes that the weights have."""
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    side = math.isqrt(state["pos_embed"].shape[1])
    depth = 1 + max(int(match[1]) for name in state if (match := re.match(r"blocks\.(\d+)\.", name)))
    hidden, dim = len(state["blocks.0.mlp.fc1.weight"]), len(state["feature.2.weight"])
    return Unicom(side * patch, patch, width, depth, hidden, dim)
