"""Hinge triplet loss over a batch."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from itr.types import Scores

Negatives = Literal["all", "hardest"]


def triplet(scores: Scores, margin: float, negatives: Negatives) -> Tensor:
    """Hinge triplet loss in both directions, summed over the batch; the share of some rows.

    L = sum_i h_j [m - s_ii + s_ij]+ + h_j [m - s_ii + s_ji]+, where h sums over all negatives or takes the hardest
    (VSE++, https://arxiv.org/abs/1707.05612, eq. 5 and 6). Pairs of one image are no negatives.

    Args:
        scores: cosines of R pairs' images and captions with all B; positives are masked out of the negatives.
        margin: m >= 0.
        negatives: `all` counts every violation, which is steady at the start; `hardest` only the worst of each row.
    """
    wrong_captions, wrong_images = (
        _costs(scores.image_to_text, scores, margin),
        _costs(scores.text_to_image, scores, margin),
    )
    if negatives == "hardest":
        return wrong_captions.amax(dim=1).sum() + wrong_images.amax(dim=1).sum()
    return wrong_captions.sum() + wrong_images.sum()


def _costs(similarity: Tensor, scores: Scores, margin: float) -> Tensor:
    """By how much each negative violates the margin [R, B]."""
    pair = similarity.diagonal(scores.rows.start)
    return (margin + similarity - pair[:, None]).clamp(min=0).masked_fill(scores.positives, 0)
