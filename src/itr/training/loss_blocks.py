"""The loss of a large batch, block by block: each block is differentiated at once, and only its gradients are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

from itr.types import Encoded
from itr.types.encoded import normalised

Terms = dict[str, Tensor]
Share = Callable[[Encoded, Encoded, dict[str, Tensor], slice], Terms]
"""From images [B], captions [B], values prepared by methods [B, ...] and rows, the rows' share in each term."""


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

    The gradient of a sum is the sum of its parts' gradients. So each block is differentiated as soon as it is computed,
    with respect to the embeddings, the values prepared by methods and the parameters, and its gradients are added up;
    the backward pass multiplies these sums by the incoming gradient. Nothing else of a block is kept.

    The gradients are those of the sum of all terms, times any factor; for another combination of the terms they are
    NaN. Second-order gradients are not available.

    Args:
        share: computes a block's share in each term; only its arguments and `module` may require gradients.
        blocks: the rows of each block.
        image: images of all pairs [B].
        text: captions of all pairs [B].
        extra: values prepared by methods, each [B, ...].
        module: module whose parameters `share` uses.
        scale: factor that the loss will be multiplied by so that its gradients fit into float16, a power of two [].
    """
    inputs = Inputs(module, scale)
    image, text = (Cut.of(side, inputs.cut, inputs) for side in (image, text))
    extra = {name: inputs.cut(value) for name, value in extra.items()}
    shares = []
    for rows in blocks:
        part = share(image, text, extra, rows)
        inputs.differentiate(torch.stack(list(part.values())).sum())
        shares.append({name: value.detach() for name, value in part.items()})
    values = torch.stack([torch.stack([part[name] for part in shares]).sum() for name in shares[0]])
    return dict(zip(shares[0], inputs.attach(values).unbind(), strict=True))


class Inputs:
    """The tensors that a loss is differentiated with respect to, and the sums of its blocks' gradients.

    Args:
        module: module whose parameters are among these tensors.
        scale: see `sum_of_blocks`.
    """

    def __init__(self, module: nn.Module, scale: Tensor | None) -> None:
        self.scale = scale
        self.outside: list[Tensor] = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.inside: list[Tensor] = list(self.outside)
        self.gradients: dict[int, Tensor] = {}
        self._number: dict[int, int] = {}  # index in `inside` by the tensor's id
        self._rows: list[tuple[int, slice, Tensor]] = []  # rows detached for the current block
        self._source: dict[int, Tensor] = {}  # original tensor by the id of its detached copy
        self._normalised: dict[tuple[int, bool, bool], Tensor] = {}

    def cut(self, value: Tensor) -> Tensor:
        """Detach `value` from its graph and register it as an input."""
        if not (value.requires_grad and torch.is_grad_enabled()):
            self._source[id(value)] = value
            return value
        self.outside.append(value)
        self.inside.append(value.detach().requires_grad_())
        self._number[id(self.inside[-1])] = len(self.inside) - 1
        self._source[id(self.inside[-1])] = value
        return self.inside[-1]

    def cut_rows(self, value: Tensor, rows: slice) -> Tensor:
        """Rows of a result of `cut`, detached from it, so that a block's gradient contains only these rows."""
        number = self._number.get(id(value))
        if number is None or not torch.is_grad_enabled():
            return value[rows]
        for known, same, leaf in self._rows:
            if (known, same) == (number, rows):
                return leaf
        self._rows.append((number, rows, value.detach()[rows].requires_grad_()))
        return self._rows[-1][-1]

    def cut_normalised(self, value: Tensor, wide: bool) -> Tensor:
        """`value`, normalised; for a result of `cut` or `cut_rows`, detached too and computed once for all blocks."""
        if not torch.is_grad_enabled():  # the cached tensors require gradients
            return normalised(value, wide)
        for number, rows, leaf in self._rows:
            if leaf is value:
                return self.cut_rows(self.cut_normalised(self.inside[number], wide), rows)
        if id(value) not in self._source:
            return normalised(value, wide)
        key = id(value), wide, torch.is_autocast_enabled(value.device.type)
        if key not in self._normalised:
            with saved_tensors_hooks(_unchanged, _unchanged):  # checkpointing inside the block must not recompute this
                self._normalised[key] = self.cut(normalised(self._source[id(value)], wide))
        return self._normalised[key]

    def differentiate(self, loss: Tensor) -> None:
        """Add the gradients of a block's loss [], and free the block's graph."""
        cut_rows, self._rows = self._rows, []
        if not loss.requires_grad:
            return
        leaves = [*self.inside, *(leaf for _, _, leaf in cut_rows)]
        with torch.autocast(loss.device.type, enabled=False):
            found = torch.autograd.grad(loss, leaves, self.scale, allow_unused=True)
        for number in range(len(self.inside)):
            self._add(found[number], number)
        for (number, rows, _), gradient in zip(cut_rows, found[len(self.inside) :], strict=True):
            self._add(gradient, number, rows)

    def _add(self, gradient: Tensor | None, number: int, rows: slice | None = None) -> None:
        """Add to the gradient of an input or of some of its rows, in float32 or wider."""
        if gradient is None:
            return
        if number not in self.gradients:
            value = self.inside[number]
            self.gradients[number] = torch.zeros_like(value, dtype=torch.promote_types(value.dtype, torch.float32))
        whole = self.gradients[number]
        (whole if rows is None else whole[rows]).add_(gradient)

    def attach(self, values: Tensor) -> Tensor:
        """Values of the terms [T], from which gradients flow to the parameters and the tensors that were detached."""
        if not self.gradients:
            return values
        attached: Tensor = _Known.apply(
            values, self.scale, list(self.gradients.values()), *[self.outside[number] for number in self.gradients]
        )
        return attached


@dataclass
class Cut(Encoded):
    """Embeddings detached from their graph, whose rows and normalised values are detached too.

    Tensors are recognised by identity, so after `replace` a new tensor behaves as in any `Encoded`.

    Attributes:
        inputs: the inputs that they are registered in.
    """

    inputs: Inputs = field(kw_only=True, repr=False)

    @staticmethod
    def of(encoded: Encoded, cut: Callable[[Tensor], Tensor], inputs: Inputs) -> Cut:
        """Apply `cut` to every tensor."""
        parts = encoded.map(cut)
        return Cut(parts.pooled, parts.tokens, parts.mask, parts.unimodal, parts.extra, inputs=inputs)

    def normalised(self, value: Tensor, wide: bool = False) -> Tensor:
        """One of the embeddings at length 1."""
        return self.inputs.cut_normalised(value, wide)

    def rows(self, index: Tensor | slice) -> Encoded:
        """Some rows, in the order of `index`; for a slice, their gradients contain only these rows."""
        if not isinstance(index, slice):
            return super().rows(index)
        return Cut.of(self, partial(self.inputs.cut_rows, rows=index), self.inputs)


def _unchanged(value: Tensor) -> Tensor:
    return value


class _Known(torch.autograd.Function):
    """Values whose gradients have already been computed."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor | None, gradients: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.scale, ctx.gradients, ctx.dtypes = scale, gradients, [value.dtype for value in inputs]
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "a loss in blocks can be differentiated only once"
        # The gradients are only valid if all terms have the same factor. An `if` would wait for the GPU.
        first = incoming[0][0]
        factor = torch.where((incoming[0] == first).all(), first, torch.nan)
        if ctx.scale is not None:
            factor = factor / ctx.scale
        return None, None, None, *[g.mul_(factor).to(kind) for g, kind in zip(gradients, ctx.dtypes, strict=True)]
