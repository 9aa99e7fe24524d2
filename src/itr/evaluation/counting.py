"""Metrics from which ranks are computed; processes divide the tiles among them and reduce the states.

Each tile is computed by one process, and its shape does not depend on the number of processes, so neither do the
counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor
from torchmetrics import Metric

from itr.distributed import process_number, world_size
from itr.evaluation.cosine import Cosine

Tiles = Sequence[tuple[slice, slice]]
"""For each tile, a slice of images (rows) and a slice of captions (columns)."""


def share(tiles: Tiles) -> Iterator[tuple[slice, slice]]:
    """The tiles of this process."""
    return islice(tiles, process_number(), None, world_size())


class TrueScores(Metric):
    """The score of each true match: caption `text[p]` is true of image `image[p]` [P], int64."""

    full_state_update = False
    scores: Tensor

    def __init__(self, image: Tensor, text: Tensor) -> None:
        super().__init__()
        self.image, self.text = image, text
        # The maximum over processes propagates NaN.
        self.add_state("scores", torch.full((len(image),), -torch.inf, device=image.device), dist_reduce_fx="max")

    def update(self, score: Callable[[slice, slice], Tensor], tiles: Tiles) -> None:
        """Score the pairs in this process's tiles."""
        for rows, columns in share(tiles):
            inside = _inside(self.image, rows) & _inside(self.text, columns)
            if len(some := inside.nonzero()[:, 0]):
                scores = score(rows, columns)
                self.scores[some] = scores[self.image[some] - rows.start, self.text[some] - columns.start]

    def compute(self) -> Tensor:
        """All scores [P], float32."""
        found: Tensor = self.scores
        return found


def _inside(index: Tensor, part: slice) -> Tensor:
    start, stop = int(part.start), int(part.stop)
    return (index >= start) & (index < stop)


class AtLeastAsHigh(Metric):
    """For each image [N] the number of captions that score at least its `best`, and the reverse for captions [M]."""

    full_state_update = False
    captions: Tensor
    images: Tensor

    def __init__(self, best: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.best = best
        for name, limit in zip(("captions", "images"), best, strict=True):
            self.add_state(name, torch.zeros_like(limit, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, score: Callable[[slice, slice], Tensor], tiles: Tiles, slack: float | None = None) -> None:
        """Count in this process's tiles.

        Args:
            score: the similarity; a `Cosine` if `slack` is given.
            tiles: the tiles of all processes.
            slack: error bound of the float32 cosines; they decide every comparison that this error cannot change.
        """
        for rows, columns in share(tiles):
            if slack is None:
                self._count(score(rows, columns), rows, columns)
            else:
                assert isinstance(score, Cosine)
                self._count_nearly(score, slack, rows, columns)

    def compute(self) -> tuple[Tensor, Tensor]:
        """The counts [N] and [M], int64."""
        return self.captions, self.images

    def _count(self, scores: Tensor, rows: slice, columns: slice) -> None:
        scores = scores.nan_to_num(nan=torch.inf)
        self.captions[rows] += (scores >= self.best[0][rows, None]).sum(dim=1)
        self.images[columns] += (scores >= self.best[1][None, columns]).sum(dim=0)

    def _count_nearly(self, score: Cosine, slack: float, rows: slice, columns: slice) -> None:
        scores = score.nearly(rows, columns)
        limits = self.best[0][rows, None], self.best[1][None, columns]
        for side, (limit, count) in enumerate(zip(limits, (self.captions[rows], self.images[columns]), strict=True)):
            above, near = _above_and_near(scores, limit, slack, side)
            count += above
            if len(near) > scores.numel() // 16:  # collapsed embeddings: almost all scores are near
                exact = score(rows, columns)[near[:, 0], near[:, 1]]
            else:
                exact = score.pairs(near[:, 0] + rows.start, near[:, 1] + columns.start)
            ahead = exact >= limit.flatten()[near[:, side]]
            count.index_add_(0, near[:, side], ahead.long())


def _above_and_near(scores: Tensor, limit: Tensor, slack: float, side: int) -> tuple[Tensor, Tensor]:
    """The number of scores of each query that are certainly above its limit, and those too near to decide [P, 2].

    Counting in float32 is several times as fast as in bool, and exact up to 2^24.
    """
    number = torch.empty_like(scores)
    above = torch.gt(scores, limit + slack, out=number).sum(dim=1 - side)
    at_least = torch.ge(scores, limit - slack, out=number).sum(dim=1 - side)
    queries = (at_least > above).nonzero()[:, 0]
    some, limit = scores.index_select(side, queries), limit.index_select(side, queries)
    near = ((some >= limit - slack) & (some <= limit + slack)).nonzero()
    near[:, side] = queries[near[:, side]]
    return above.long(), near
