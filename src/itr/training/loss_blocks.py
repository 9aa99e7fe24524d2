"""A loss of a large batch, block by block: each block's gradients are taken at once, and nothing else is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from itr.types import Encoded

Terms = dict[str, Tensor]
Share = Callable[[Encoded, Encoded, dict[str, Tensor], slice], Terms]
"""Images [B], captions [B], what methods prepared [B, ...] and rows, to the share of these rows in each term."""


def sum_of_blocks(
    share: Share,
    blocks: Sequence[slice],
    image: Encoded,
    text: Encoded,
    extra: dict[str, Tensor],
    module: nn.Module,
    scale: Tensor | None = None,
) -> Terms:
    """The sum of the shares of all blocks of rows, with the memory of one block and no second forward pass.

    A sum needs nothing of its parts but their gradients. So each block is differentiated as soon as it is there, with
    respect to the embeddings, what methods prepared, and the parameters; the backward pass multiplies the sums of these
    by the gradient that comes in. All that remains of a block is in them, of the size of the embeddings.

    The gradients are those of the sum of all terms, times what it is multiplied by; those of another combination of
    terms are NaN. There are none of a second order.

    Args:
        share: gives a block's share in each term, of nothing else with a gradient than its arguments and `module`.
        blocks: the rows of each block.
        image: images of all pairs [B].
        text: captions of all pairs [B].
        extra: what methods prepared, each [B, ...].
        module: whose parameters `share` uses.
        scale: by what the loss will be multiplied, a power of two [], so that float16 holds its gradients.
    """
    inputs = Inputs(module, scale)
    image, text = inputs.cut_encoded(image), inputs.cut_encoded(text)
    extra = {name: inputs.cut(value) for name, value in extra.items()}
    shares = []
    for rows in blocks:
        part = share(image, text, extra, rows)
        inputs.differentiate(torch.stack(list(part.values())).sum())
        shares.append({name: value.detach() for name, value in part.items()})
    values = torch.stack([torch.stack([part[name] for part in shares]).sum() for name in shares[0]])
    return dict(zip(shares[0], inputs.attach(values).unbind(), strict=True))


class Inputs:
    """What a loss is differentiated with respect to, and the sums of its blocks' gradients.

    Args:
        module: whose parameters are among them.
        scale: see `sum_of_blocks`.
    """

    def __init__(self, module: nn.Module, scale: Tensor | None) -> None:
        self.scale = scale
        self.outside: list[Tensor] = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.inside: list[Tensor] = list(self.outside)
        self.gradients: dict[int, Tensor] = {}

    def cut(self, value: Tensor) -> Tensor:
        """The same values, cut off from what made them."""
        if not (value.requires_grad and torch.is_grad_enabled()):
            return value
        self.outside.append(value)
        self.inside.append(value.detach().requires_grad_())
        return self.inside[-1]

    def cut_encoded(self, encoded: Encoded) -> Encoded:
        """Likewise, with what is normalised: once, before the cut, instead of in each block."""
        inside = encoded.map(self.cut)
        inside.known_unit = self.cut(encoded.unit)
        return inside

    def differentiate(self, loss: Tensor) -> None:
        """Add the gradients of a block's loss [], which frees all that the block holds."""
        if not loss.requires_grad:
            return
        with torch.autocast(loss.device.type, enabled=False):
            found = torch.autograd.grad(loss, self.inside, self.scale, allow_unused=True)
        for number, gradient in enumerate(found):
            if gradient is None:
                continue
            if number in self.gradients:
                self.gradients[number] += gradient
            else:  # blocks are summed in float32 at least; a copy, since two inputs may have been given one gradient
                self.gradients[number] = gradient.to(torch.promote_types(gradient.dtype, torch.float32), copy=True)

    def attach(self, values: Tensor) -> Tensor:
        """Values of the terms [T], from which gradients flow to whatever was not cut off or lies before the cut."""
        if not self.gradients:
            return values
        attached: Tensor = _Known.apply(
            values, self.scale, list(self.gradients.values()), *[self.outside[number] for number in self.gradients]
        )
        return attached


class _Known(torch.autograd.Function):
    """Values whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor | None, gradients: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.scale, ctx.gradients, ctx.dtypes = scale, gradients, [value.dtype for value in inputs]
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "the gradients of a loss in blocks have been taken already"
        # Equal for all terms, or else not what the gradients were taken of. No `if`: a GPU would be waited for.
        first = incoming[0][0]
        factor = torch.where((incoming[0] == first).all(), first, torch.nan)
        if ctx.scale is not None:
            factor = factor / ctx.scale
        return None, None, None, *[g.mul_(factor).to(kind) for g, kind in zip(gradients, ctx.dtypes, strict=True)]
