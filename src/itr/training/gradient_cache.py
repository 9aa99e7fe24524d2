"""Large batches in little memory: forward passes that keep no activations and run again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from itr.private_api.torch import own_buffers
from itr.types import Batch, Encoded

T = TypeVar("T")


def replayed(forward: Callable[[], T], module: nn.Module, device: torch.device) -> T:
    """Run `forward` and keep only its result; the backward pass runs it again with the same random numbers.

    Embedding a batch in parts like this, and then comparing all embeddings with one another, is gradient caching
    (Gao et al. 2021, https://arxiv.org/abs/2101.06983). It gives the exact gradient of the whole batch with the
    activations of one part at a time, at the cost of one more forward pass.

    NOTE: the paper and its successors write the second pass by hand: they store the gradients of the embeddings, run
    each part again, and backpropagate these gradients. Checkpointing does the same within one backward pass. Gradient
    scaling, clipping and accumulation need no changes, and DDP averages a parameter once, after the last part.

    Args:
        forward: the computation; it may draw random numbers on the CPU and on a GPU.
        module: module whose running statistics the second pass must not change.
        device: device that `forward` uses.
    """
    result: T = checkpoint(
        lambda _: forward(),
        torch.empty(0, device=device),  # random states are restored only on the devices of the arguments
        use_reentrant=False,
        preserve_rng_state=True,
        context_fn=lambda: (nullcontext(), SecondPass(module)),
    )
    return result


def embed_parts(
    parts: Sequence[Batch], embed: Callable[[Batch], tuple[Encoded, Encoded]], module: nn.Module
) -> tuple[Encoded, Encoded]:
    """Embed the images and captions of all parts of a batch; each part is `replayed` if there are several."""
    found = []
    for part in parts:
        forward = partial(embed, part)
        found.append(forward() if len(parts) == 1 else replayed(forward, module, part.image_id.device))
    image, text = (Encoded.concatenate(list(side)) for side in zip(*found, strict=True))
    return image, text


class SecondPass:
    """Context of the forward pass that runs again in the backward pass.

    Modules in training mode write to copies of their buffers, so that running statistics count each part once. New
    tensors have the default dtype of the first pass, which precisions such as `bf16-true` set only until it ends.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.dtype = torch.get_default_dtype()
        self.kept: list[tuple[dict[str, Tensor | None], dict[str, Tensor | None]]] = []

    def __enter__(self) -> None:
        buffers = [own_buffers(part) for part in self.module.modules() if part.training]
        self.kept = [(own, dict(own)) for own in buffers]
        for own in buffers:
            own.update({name: None if value is None else value.clone() for name, value in own.items()})
        self.outside = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(self.outside)
        for own, before in self.kept:
            own.update(before)
        self.kept = []


def running_statistics(module: nn.Module) -> list[str]:
    """Names of the layers that normalise by batch statistics, such as batch normalisation in training mode."""
    return [name for name, part in module.named_modules() if part.training and hasattr(part, "running_mean")]
