"""Files with weights, as other programs write them."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

TINY_CLIP_CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


class Tower(nn.Module):
    """A module with everything that OpenAI's archives have."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.scale = nn.Parameter(torch.tensor(4.0))
        self.names, self.rate = ["x", "y"], 0.5
        for name, value in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 9)):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.a(x)) * self.scale


def save_script(path: Path, module: nn.Module | None = None) -> dict[str, Tensor]:
    """Write a TorchScript archive in half precision, of a `Tower` by default; returns its weights."""
    tower = (module or Tower()).half().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(tower).save(str(path))  # type: ignore[no-untyped-call]
    return tower.state_dict()
