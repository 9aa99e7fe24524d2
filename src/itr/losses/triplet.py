"""Hinge triplet loss over a batch."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from itr.types import Scores

Negatives = Literal["all", "hardest"]


def triplet(scores: Scores, margin: float, negatives: Negatives) -> Tensor:
    """Hinge triplet loss in both directions, summed over the batch; the part of the loss of some rows.

    L = sum_i h_j [m - s_ii + s_ij]+ + h_j [m - s_ii + s_ji]+, where h sums over all negatives or selects the hardest
    (VSE++, https://arxiv.org/abs/1707.05612, eq. 5 and 6). Pairs of the same image are not negatives.

    Args:
        scores: cosines of R pairs' images and captions with all B; positives are masked out of the negatives.
        margin: m >= 0.
        negatives: `all` counts every violation, which is stable at the start; `hardest` only the worst of each row.
    """
    wrong_captions = _costs(scores.image_to_text, scores, margin, negatives)
    return wrong_captions + _costs(scores.text_to_image, scores, margin, negatives)


def _costs(similarity: Tensor, scores: Scores, margin: float, negatives: Negatives) -> Tensor:
    """Sum of the margin violations of the selected negatives []."""
    room = margin - similarity.diagonal(scores.rows.start)
    wrong = similarity.masked_fill(scores.positives, -math.inf)
    if negatives == "hardest":
        return (wrong.amax(dim=1) + room).relu().sum()
    return wrong.add_(room[:, None]).relu_().sum()  # in place: `wrong` is already a copy as large as the similarities
