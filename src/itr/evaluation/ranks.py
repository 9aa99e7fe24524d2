"""Exact ranks by counting, tile by tile: no full similarity matrix, and ties never help."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from itr.evaluation.cosine import Cosine
from itr.evaluation.score import Score, Way

IN_CACHE = 1024  # side of a tile that stays in the processor's cache until it is compared
TileScore = Callable[[slice, slice], Tensor]
"""Scores some images (rows) against some captions (columns) [I, C]; the part of `Score` that `rank` needs."""


@dataclass
class Ranks:
    """Ranks of the queries that have a true match; 0 is best.

    Attributes:
        image_to_text: for each image with a true match, the number of wrong captions that score at least as high as
            its best true match [Q].
        text_to_image: for each caption with a true match, the corresponding number of images [M].
    """

    image_to_text: Tensor
    text_to_image: Tensor


@dataclass
class Matches:
    """True matches as pairs of rows: caption `text[p]` is true of image `image[p]` [P], int64.

    Attributes:
        num_images: N.
        num_texts: M.
    """

    image: Tensor
    text: Tensor
    num_images: int
    num_texts: int

    @classmethod
    def own(cls, own_image: Tensor, num_images: int) -> Matches:
        """Match each caption with its own image [M]; an image may have any number of captions."""
        texts = torch.arange(len(own_image), device=own_image.device)
        return cls(own_image, texts, num_images, len(own_image))

    @property
    def sides(self) -> tuple[tuple[Tensor, int], tuple[Tensor, int]]:
        """For images and for captions, the rows of the pairs and the total number of rows."""
        return (self.image, self.num_images), (self.text, self.num_texts)


def tiles(length: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` elements that cover `length`."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def rank(score: Score | TileScore, matches: Matches, tile: int = 4096, ways: Sequence[Way] = ("i2t", "t2i")) -> Ranks:
    """Ranks in both directions.

    A wrong candidate that ties with the true match is ranked before it. A NaN score counts as the lowest for a true
    match and as the highest for a wrong candidate. The processes of a run divide the tiles among them: each must call
    this with the same gallery, and each gets all ranks.

    Args:
        score: the similarity, computed tile by tile. On a CPU, a `Cosine` is computed in float32, and only scores that
            differ from the true match by less than the error bound are recomputed exactly; the ranks are the same.
        matches: the true matches, on the device of `score`.
        tile: number of images and of captions in a tile; memory grows with its square.
        ways: the directions to rank. If the score depends on the query, the other direction is left empty.
    """
    if isinstance(score, Score) and score.by_query:
        by_way = {way: _rank_queries(score, matches, way) for way in ways}
        none = torch.zeros(0, dtype=torch.int64)
        return Ranks(by_way.get("i2t", none), by_way.get("t2i", none))
    from itr.evaluation.counting import AtLeastAsHigh, TrueScores  # torchmetrics takes seconds to import

    slack = score.slack() if isinstance(score, Cosine) and matches.image.device.type == "cpu" else None
    if slack is not None:
        assert isinstance(score, Cosine)
        own = score.pairs(matches.image, matches.text)
        grid = _grid(matches, min(tile, IN_CACHE))
    else:
        grid = _grid(matches, tile)
        true_scores = TrueScores(matches.image, matches.text)
        true_scores.update(score, grid)
        own = true_scores.compute().reshape(-1)  # a metric squeezes a single number
    best = _best(own.nan_to_num(nan=-torch.inf), matches)
    counts = AtLeastAsHigh(best)
    counts.update(score, grid, slack)
    found = []
    for (queries, number), limit, count in zip(matches.sides, best, counts.compute(), strict=True):
        right = (own.nan_to_num(nan=torch.inf) >= limit[queries]).long()  # do not count true matches
        wrong = count.reshape(-1) - torch.zeros_like(limit, dtype=torch.int64).index_add_(0, queries, right)
        found.append(wrong[_has_any(queries, number)])
    return Ranks(*found)


def _grid(matches: Matches, tile: int) -> list[tuple[slice, slice]]:
    return list(product(tiles(matches.num_images, tile), tiles(matches.num_texts, tile)))


def _rank_queries(score: Score, matches: Matches, way: Way, size: int = 256) -> Tensor:
    """Ranks in one direction [Q], computed from all candidates of `size` queries at a time."""
    queries, candidates = (matches.image, matches.text) if way == "i2t" else (matches.text, matches.image)
    found = []
    for some in tiles(score.num_queries(way), size):
        scores = score.candidates(way, some)
        here = (queries >= some.start) & (queries < some.stop)
        right = torch.zeros_like(scores, dtype=torch.bool)
        right[queries[here] - some.start, candidates[here]] = True
        best = scores.nan_to_num(nan=-torch.inf).masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        found.append(((scores.nan_to_num(nan=torch.inf) >= best) & ~right).sum(dim=1)[right.any(dim=1)])
    return torch.cat(found)


def _has_any(queries: Tensor, number: int) -> Tensor:
    return torch.bincount(queries, minlength=number) > 0


def _best(own: Tensor, matches: Matches) -> tuple[Tensor, Tensor]:
    """The best score among the true matches of each image [N] and of each caption [M]."""
    first, second = (
        torch.full((number,), -torch.inf, device=own.device).scatter_reduce_(0, queries, own, reduce="amax")
        for queries, number in matches.sides
    )
    return first, second


def precision_over_all(scores: Tensor, positives: Tensor, totals: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """mAP@R and R-Precision of queries with any number of true matches, as defined for ECCV Caption.

    For a query with R true matches and hits h_k at rank k: R-P = 1/R sum_{k<=R} h_k, and
    AP@R = 1/R sum_{k<=R} h_k (1/k sum_{j<=k} h_j) (https://arxiv.org/abs/2204.03359, section 4). Among equal scores,
    wrong candidates come first.

    Args:
        scores: scores of queries and candidates [Q, K].
        positives: the true matches [Q, K], bool; queries without a true match are skipped.
        totals: R of each query [Q], needed if some true matches are not among the candidates.

    Returns:
        AP@R and R-Precision of each remaining query [Q'].
    """
    has_any = positives.any(dim=1)
    scores, positives = scores[has_any], positives[has_any]
    wrong_first = torch.argsort(positives.to(torch.uint8), dim=1, stable=True)
    order = torch.argsort(scores.gather(1, wrong_first), dim=1, descending=True, stable=True)
    hits = positives.gather(1, wrong_first).gather(1, order).double()
    total = hits.sum(dim=1) if totals is None else totals[has_any].double()
    position = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    hits = hits * (position[None, :] <= total[:, None])
    average_precision = (hits * hits.cumsum(dim=1) / position).sum(dim=1) / total
    return average_precision, hits.sum(dim=1) / total
