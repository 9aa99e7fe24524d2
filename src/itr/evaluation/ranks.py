"""Exact ranks by counting, tile by tile: no full similarity matrix, and ties never help."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Score = Callable[[slice, slice], Tensor]
"""Scores of some images (rows) against some captions (columns): [I, C], float32."""


def cosine_score(image: Tensor, text: Tensor) -> Score:
    """Cosines of embeddings [N, D] and [M, D] of any precision.

    Products are taken in float64 and rounded to float32, so that equal embeddings tie whatever tile, process or device
    they are scored in.
    """
    image = F.normalize(image.double(), dim=-1)
    text = F.normalize(text.double(), dim=-1)
    return lambda rows, columns: (image[rows] @ text[columns].T).float()


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
        score: the similarity, asked for tile by tile.
        num_images: N.
        own_image: row of the image that each caption belongs to [M], any number of captions an image; on the device
            that `score` works on.
        tile: images and captions of a tile; memory grows with its square.
    """
    num_texts, device = len(own_image), own_image.device
    text_best, image_best = _own_scores(score, num_images, own_image, tile)
    image_to_text = torch.zeros(num_images, dtype=torch.int64, device=device)
    text_to_image = torch.zeros(num_texts, dtype=torch.int64, device=device)
    for rows in tiles(num_images, tile):
        for columns in tiles(num_texts, tile):
            scores = _replace_nan(score(rows, columns), torch.inf)
            wrong = own_image[columns][None, :] != torch.arange(rows.start, rows.stop, device=device)[:, None]
            image_to_text[rows] += ((scores >= image_best[rows, None]) & wrong).sum(dim=1)
            text_to_image[columns] += ((scores >= text_best[None, columns]) & wrong).sum(dim=0)
    has_captions = torch.bincount(own_image, minlength=num_images) > 0
    return Ranks(image_to_text[has_captions], text_to_image)


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
    image_best = torch.full((num_images,), -torch.inf, device=own_image.device)
    image_best.scatter_reduce_(0, own_image, text_best, reduce="amax")
    return text_best, image_best


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
