"""Large batches on small memory: forward passes that keep nothing and are run again in the backward pass."""

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
    """The result of `forward`, of which nothing else is kept: the backward pass runs it again, with the same draws.

    Embedding a batch part by part like this, and comparing all embeddings with one another afterwards, is gradient
    caching (Gao et al. 2021, https://arxiv.org/abs/2101.06983): the exact gradient of the whole batch, with the
    activations of one part at a time, for one further forward pass.

    NOTE: the paper and its successors write the second pass by hand: gradients of embeddings are stored, and each part
    is run again and given them. Checkpointing does the same inside one backward pass. So gradient scaling, clipping and
    accumulation need not know of it, and DDP averages a parameter once, when the last part has reached it.

    Args:
        forward: what to compute; it may draw random numbers on the CPU and on a GPU.
        module: whose running statistics the second pass leaves alone.
        device: where `forward` works.
    """
    result: T = checkpoint(
        lambda _: forward(),
        torch.empty(0, device=device),  # random numbers are put back on the devices of arguments alone
        use_reentrant=False,
        preserve_rng_state=True,
        context_fn=lambda: (nullcontext(), SecondPass(module)),
    )
    return result


def embed_parts(
    parts: Sequence[Batch], embed: Callable[[Batch], tuple[Encoded, Encoded]], module: nn.Module
) -> tuple[Encoded, Encoded]:
    """Images and captions of all parts of a batch, each part `replayed` where there are several."""
    found = []
    for part in parts:
        forward = partial(embed, part)
        found.append(forward() if len(parts) == 1 else replayed(forward, module, part.image_id.device))
    image, text = (Encoded.concatenate(list(side)) for side in zip(*found, strict=True))
    return image, text


class SecondPass:
    """The backward pass's own run of a forward pass, while it is entered.

    Whatever trains writes into copies of its buffers, so that statistics count a part once; and new tensors are of the
    kind that they were of in the first pass, for precisions such as `bf16-true` last only until its end.
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
    """Names of the layers that normalise by the batch they see, as batch normalisation in training does."""
    return [name for name, part in module.named_modules() if part.training and hasattr(part, "running_mean")]
