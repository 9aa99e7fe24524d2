"""Settings for batches that do not fit into memory, and the loss as a sum over blocks of rows."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor, nn

from itr.distributed import mean_of_processes, process_number, world_size
from itr.errors import UserError
from itr.training.gradient_cache import running_statistics
from itr.training.loss_blocks import Share, Terms, sum_of_blocks
from itr.types import Encoded

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LargeBatch:
    """How to train on batches that are too large for memory. Loss and gradients stay those of the whole batch.

    `docs/large_batches.md` describes what each setting costs.

    Args:
        local_loss: each process computes the loss of its own pairs against all pairs, instead of the loss of all pairs.
        loss_chunk: number of rows of the similarity matrix to compute and differentiate at a time; 0 for all rows.
        gradient_cache: number of pairs per process to embed at a time, and again in the backward pass; 0 for all pairs.
    """

    local_loss: bool = False
    loss_chunk: int = 0
    gradient_cache: int = 0

    def __post_init__(self) -> None:
        """Reject impossible values before anything is built."""
        for name, value in (("loss_chunk", self.loss_chunk), ("gradient_cache", self.gradient_cache)):
            if value < 0:
                raise UserError(f"large_batch.{name} is {value}; it must be 0 (all at once) or a number of pairs")

    def blocks(self, size: int) -> list[slice]:
        """The rows whose loss this process computes in a batch of `size` pairs, in blocks."""
        share = size // world_size() if self.local_loss else size
        first = share * process_number() if self.local_loss else 0
        step = self.loss_chunk or share
        return [slice(row, min(row + step, first + share)) for row in range(first, first + share, step)]

    def sum_of_shares(
        self,
        share: Share,
        image: Encoded,
        text: Encoded,
        extra: dict[str, Tensor],
        module: nn.Module,
        scale: Tensor | None = None,
    ) -> Terms:
        """Loss terms whose gradients, averaged over processes by DDP, are those of the whole batch.

        With several blocks, gradients are those of the sum of all terms; see `itr.training.loss_blocks.sum_of_blocks`.

        Args:
            share: computes the share of a block of rows in each term.
            image: images of the pairs of all processes [B].
            text: their captions [B].
            extra: values prepared by methods, each [B, ...].
            module: module whose parameters `share` uses.
            scale: factor that the loss will be multiplied by for float16 []; None for no factor.
        """
        blocks = self.blocks(len(image))
        if len(blocks) == 1:
            terms = share(image, text, extra, blocks[0])
        else:
            terms = sum_of_blocks(share, blocks, image, text, extra, module, scale)
        factor = world_size() if self.local_loss else 1
        return {name: factor * value for name, value in terms.items()}

    def whole(self, terms: Terms) -> Terms:
        """The terms of the whole batch on every process, without gradients, from the result of `sum_of_shares`."""
        values = torch.stack([value.detach() for value in terms.values()])
        if self.local_loss:
            values = mean_of_processes(values)
        return dict(zip(terms, values.unbind(), strict=True))

    def announce(self, module: nn.Module, trainer: pl.Trainer) -> None:
        """Warn before training about settings that may not do what the user expects.

        Raises:
            UserError: the model has synchronised batch normalisation, which cannot run in parts.
        """
        steps = _accumulated(trainer)
        if steps > 1:
            log.warning(
                "gradients of %d batches are averaged before a step, but the negatives of each pair still come only "
                "from its own batch; for a larger contrastive batch raise --data.batch_size and set "
                "--model.large_batch.gradient_cache to a number of pairs that fits into memory",
                steps,
            )
        layers = running_statistics(module) if self.gradient_cache else []
        if any(isinstance(module.get_submodule(name), nn.SyncBatchNorm) for name in layers):
            raise UserError(
                "large_batch.gradient_cache embeds the parts of a batch separately on each process, which synchronised "
                "batch normalisation does not support; omit either this setting or --trainer.sync_batchnorm"
            )
        if layers:
            log.warning(
                "large_batch.gradient_cache is %d: batch normalisation sees this many pairs at a time instead of the "
                "batch, so metrics differ from those without it: %s",
                self.gradient_cache,
                ", ".join(layers),
            )


def _accumulated(trainer: pl.Trainer) -> int:
    """The largest number of batches per optimizer step."""
    callbacks = [c for c in trainer.callbacks if isinstance(c, GradientAccumulationScheduler)]  # type: ignore[attr-defined]
    return max([trainer.accumulate_grad_batches, *(n for c in callbacks for n in c.scheduling.values())])
