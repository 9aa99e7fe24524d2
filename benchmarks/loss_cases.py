"""The losses that `loss_at_scale.py` measures, on random embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from itr.backbones import Backbone
from itr.methods import CUSA
from itr.objectives import InfoNCE, Objective, Sigmoid, Triplet
from itr.training.large_batch import LargeBatch
from itr.types import Encoded, Pairs, score_rows
from measuring import device

WIDTH = 512
TEACHER = 768


@dataclass(frozen=True)
class Case:
    """A loss to measure.

    Attributes:
        objective: builds the objective.
        cusa: whether to add CUSA's soft labels.
        products: matrix products of B x B scores in width D, forward and backward, in blocks.
        least: the same without blocks.
        matrices: number of score matrices with a gradient, in blocks.
        chunk: rows per block on a GPU: about the most that keep 16,384 pairs within 0.5 GB, since each block costs the
            host about a hundred launches.
    """

    objective: Callable[[], Objective]
    cusa: bool
    products: float
    least: float
    matrices: int
    chunk: int


CASES = {
    "InfoNCE": Case(InfoNCE, False, 6, 3, 2, 832),
    "Triplet": Case(Triplet, False, 6, 3, 2, 1280),
    "Sigmoid": Case(Sigmoid, False, 3, 3, 1, 1280),
    "InfoNCE + CUSA": Case(InfoNCE, True, 12 + 2 * TEACHER / WIDTH, 9 + 2 * TEACHER / WIDTH, 4, 304),
}


class Loss:
    """A case with random embeddings.

    Args:
        name: name of the case.
        batch: number of pairs B.
        kind: data type.
    """

    def __init__(self, name: str, batch: int, kind: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        case = CASES[name]
        with torch.device(device()):
            self.objective = case.objective()
            self.method = CUSA().build(SimpleNamespace(dim=WIDTH)) if case.cusa else None  # type: ignore[arg-type]
        self.weights = CUSA().weights if case.cusa else {}
        parts = [self.objective, *([self.method] if self.method else [])]
        self.module = nn.ModuleList(parts)
        if kind != torch.float32:  # fake tensors do not allow a conversion
            self.module.to(kind)
        self.ids = torch.arange(batch, device=device())
        noise = {"dtype": kind, "device": device()}
        image = [torch.randn(batch, WIDTH, **noise) for _ in range(2 if case.cusa else 1)]
        self.images = [value.requires_grad_() for value in image]
        self.texts = [(0.3 * value.detach() + torch.randn_like(value)).requires_grad_() for value in image]
        names = ("teacher_image", "teacher_text") if case.cusa else ()
        self.extra = {side: torch.randn(batch, TEACHER, **noise) for side in names}

    def share(self, image: Encoded, text: Encoded, extra: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
        """Compute the share of some rows as `RetrievalModule` does."""
        scores = score_rows(lambda a, b: Backbone.similarity(None, a, b), image, text, self.ids, rows)  # type: ignore[arg-type]
        terms = {"objective": self.objective(scores, 0.5)}
        found = self.method.losses(Pairs(image, text, self.ids, scores, extra)) if self.method else {}
        return terms | {name: self.weights[name] * value for name, value in found.items()}

    def step(self, chunk: int) -> Tensor:
        """Return the loss [] after its backward pass."""
        image, text = (_encoded(side) for side in (self.images, self.texts))
        terms = LargeBatch(loss_chunk=chunk).sum_of_shares(self.share, image, text, self.extra, self.module)
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        return loss.detach()

    def results(self, chunk: int) -> list[Tensor]:
        """Return the loss and all gradients."""
        trained = [*self.images, *self.texts, *(p for p in self.module.parameters() if p.requires_grad)]
        for value in trained:
            value.grad = None
        loss = self.step(chunk)
        return [loss, *(value.grad for value in trained if value.grad is not None)]


def _encoded(side: list[Tensor]) -> Encoded:
    empty = side[0].new_empty(len(side[0]), 0, WIDTH)
    return Encoded(side[0], empty, empty[..., 0].bool(), side[1] if len(side) > 1 else None)


def difference(name: str, batch: int, kind: torch.dtype) -> float:
    """Return the largest difference with and without blocks, relative to the largest value of each tensor."""
    loss = Loss(name, batch, kind)
    pairs = zip(loss.results(0), loss.results(batch // 5), strict=True)
    return max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs)
