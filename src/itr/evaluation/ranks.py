"""Exact ranks by counting, tile by tile: no full similarity matrix, and ties never help."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from itr.evaluation.cosine import Cosine

IN_CACHE = 1024  # side of a tile that is still in the processor's cache when it is compared
Score = Callable[[slice, slice], Tensor]
"""Scores of some images (rows) against some captions (columns): [I, C], float32."""


@dataclass
class Ranks:
    """Ranks from 0, the best.

    Attributes:
        image_to_text: for each image that has captions, how many wrong captions score at least as high as the best of
            its own [Q].
        text_to_image: for each caption, how many wrong images score at least as high as its own [M].
    """

    image_to_text: Tensor
    text_to_image: Tensor


def tiles(length: int, size: int) -> Iterator[slice]:
    """Slices of `size` that cover `length`."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def rank(score: Score, num_images: int, own_image: Tensor, tile: int = 4096) -> Ranks:
    """Ranks of both directions.

    A wrong candidate that ties with the right one is counted before it. Scores that are NaN count as the worst for the
    right one and the best for a wrong one.

    Args:
        score: the similarity, asked for tile by tile. On a CPU a `Cosine` is multiplied in float32, and only what comes
            closer to the right one than its error is looked at exactly: the ranks are the same.
        num_images: N.
        own_image: row of the image that each caption belongs to [M], any number of captions an image; on the device
            that `score` works on.
        tile: images and captions of a tile; memory grows with its square.
    """
    slack = score.slack() if isinstance(score, Cosine) and own_image.device.type == "cpu" else None
    if slack is not None:
        assert isinstance(score, Cosine)
        found = _rank_nearly(score, slack, num_images, own_image, tile)
    else:
        found = _rank_exactly(score, num_images, own_image, tile)
    has_captions = torch.bincount(own_image, minlength=num_images) > 0
    return Ranks(found.image_to_text[has_captions], found.text_to_image)


def _rank_exactly(score: Score, num_images: int, own_image: Tensor, tile: int) -> Ranks:
    device = own_image.device
    text_best, image_best = _own_scores(score, num_images, own_image, tile)
    found = _zeros(num_images, own_image)
    for rows in tiles(num_images, tile):
        for columns in tiles(len(own_image), tile):
            scores = _replace_nan(score(rows, columns), torch.inf)
            wrong = own_image[columns][None, :] != torch.arange(rows.start, rows.stop, device=device)[:, None]
            found.image_to_text[rows] += ((scores >= image_best[rows, None]) & wrong).sum(dim=1)
            found.text_to_image[columns] += ((scores >= text_best[None, columns]) & wrong).sum(dim=0)
    return found


def _rank_nearly(score: Cosine, slack: float, num_images: int, own_image: Tensor, tile: int) -> Ranks:
    text_best = score.pairs(own_image, torch.arange(len(own_image)))
    image_best = _best_of_each_image(text_best, num_images, own_image)
    found = _zeros(num_images, own_image)
    counts = found.text_to_image, found.image_to_text
    for rows in tiles(num_images, min(tile, IN_CACHE // 2)):
        for columns in tiles(len(own_image), min(tile, IN_CACHE)):
            scores = score.nearly(rows, columns)
            for count, best, of in zip(counts, (text_best[None, columns], image_best[rows, None]), (1, 0), strict=True):
                queries = (rows, columns)[of]
                above = scores > best + slack
                near = (scores >= best - slack) ^ above
                count[queries] += above.sum(dim=1 - of)
                pairs = near.nonzero()
                if len(pairs) > near.numel() // 16:  # collapsed embeddings: all are near
                    exact = score(rows, columns)[pairs[:, 0], pairs[:, 1]]
                else:
                    exact = score.pairs(pairs[:, 0] + rows.start, pairs[:, 1] + columns.start)
                wrong = own_image[columns][pairs[:, 1]] != pairs[:, 0] + rows.start
                ahead = wrong & (exact >= best.expand_as(near)[pairs[:, 0], pairs[:, 1]])
                count[queries].index_add_(0, pairs[:, of], ahead.long())
    return found


def _zeros(num_images: int, own_image: Tensor) -> Ranks:
    return Ranks(*(torch.zeros(n, dtype=torch.int64, device=own_image.device) for n in (num_images, len(own_image))))


def _own_scores(score: Score, num_images: int, own_image: Tensor, tile: int) -> tuple[Tensor, Tensor]:
    """Each caption's score with its own image [M], and each image's best among its own captions [N]."""
    text_best = torch.full((len(own_image),), -torch.inf, device=own_image.device)
    for rows in tiles(num_images, tile):
        for columns in tiles(len(own_image), tile):
            own = own_image[columns]
            here = torch.nonzero((own >= rows.start) & (own < rows.stop))[:, 0]
            if len(here):
                scores = score(rows, columns)
                text_best[columns.start + here] = scores[own[here] - rows.start, here]
    text_best = _replace_nan(text_best, -torch.inf)
    return text_best, _best_of_each_image(text_best, num_images, own_image)


def _best_of_each_image(text_best: Tensor, num_images: int, own_image: Tensor) -> Tensor:
    """The best of each image's own captions' scores [M] -> [N]."""
    best = torch.full((num_images,), -torch.inf, device=own_image.device)
    return best.scatter_reduce_(0, own_image, text_best, reduce="amax")


def _replace_nan(values: Tensor, by: float) -> Tensor:
    return values.masked_fill(values.isnan(), by)


def precision_over_all(scores: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    """mAP@R and R-Precision of queries with any number of true matches, as defined for ECCV Caption.

    With R true matches of a query and hits h_k at rank k: R-P = 1/R sum_{k<=R} h_k, and
    AP@R = 1/R sum_{k<=R} h_k (1/k sum_{j<=k} h_j) (https://arxiv.org/abs/2204.03359, section 4). Among equal scores
    wrong candidates come first.

    Args:
        scores: of queries and candidates [Q, K].
        positives: the true matches [Q, K], bool; queries without any are left out.

    Returns:
        AP@R and R-Precision of each remaining query [Q'].
    """
    has_any = positives.any(dim=1)
    scores, positives = scores[has_any], positives[has_any]
    wrong_first = torch.argsort(positives.to(torch.uint8), dim=1, stable=True)
    order = torch.argsort(scores.gather(1, wrong_first), dim=1, descending=True, stable=True)
    hits = positives.gather(1, wrong_first).gather(1, order).double()
    total = hits.sum(dim=1)
    position = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    hits = hits * (position[None, :] <= total[:, None])
    average_precision = (hits * hits.cumsum(dim=1) / position).sum(dim=1) / total
    return average_precision, hits.sum(dim=1) / total
