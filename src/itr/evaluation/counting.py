"""What ranks are made of, as metrics whose tiles the processes share and whose states they reduce.

Every tile is computed by one process, and has the same shape whatever the number of processes, so the counts do not
depend on that number.
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
"""Some images (rows) and some captions (columns) each."""


def share(tiles: Tiles) -> Iterator[tuple[slice, slice]]:
    """The tiles of this process."""
    return islice(tiles, process_number(), None, world_size())


class TrueScores(Metric):
    """The score of each true match: caption `text[p]` holds for image `image[p]` [P], int64."""

    full_state_update = False
    scores: Tensor

    def __init__(self, image: Tensor, text: Tensor) -> None:
        super().__init__()
        self.image, self.text = image, text
        # The maximum of several processes keeps a NaN.
        self.add_state("scores", torch.full((len(image),), -torch.inf, device=image.device), dist_reduce_fx="max")

    def update(self, score: Callable[[slice, slice], Tensor], tiles: Tiles) -> None:
        """Score the pairs of this process's tiles."""
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
    """How many captions score at least `best` of each image [N], and how many images that of each caption [M]."""

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
            score: the similarity; a `Cosine` where `slack` is given.
            tiles: the tiles of all processes.
            slack: the error of the cosines in float32, by which then all is counted that it cannot change.
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
            if len(near) > scores.numel() // 16:  # collapsed embeddings: all are near
                exact = score(rows, columns)[near[:, 0], near[:, 1]]
            else:
                exact = score.pairs(near[:, 0] + rows.start, near[:, 1] + columns.start)
            ahead = exact >= limit.flatten()[near[:, side]]
            count.index_add_(0, near[:, side], ahead.long())


def _above_and_near(scores: Tensor, limit: Tensor, slack: float, side: int) -> tuple[Tensor, Tensor]:
    """How many scores of each query are surely above its limit, and which are too near to decide [P, 2].

    Counted as numbers in float32, which is several times as fast as in bool, and exact up to 2^24.
    """
    number = torch.empty_like(scores)
    above = torch.gt(scores, limit + slack, out=number).sum(dim=1 - side)
    at_least = torch.ge(scores, limit - slack, out=number).sum(dim=1 - side)
    queries = (at_least > above).nonzero()[:, 0]
    some, limit = scores.index_select(side, queries), limit.index_select(side, queries)
    near = ((some >= limit - slack) & (some <= limit + slack)).nonzero()
    near[:, side] = queries[near[:, side]]
    return above.long(), near
