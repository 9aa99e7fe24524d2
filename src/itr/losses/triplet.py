"""Hinge triplet loss over a batch."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Negatives = Literal["all", "hardest"]


def triplet(similarity: Tensor, positives: Tensor, margin: float, negatives: Negatives) -> Tensor:
    """Hinge triplet loss in both directions, summed over the batch.

    L = sum_i h_j [m - s_ii + s_ij]+ + h_j [m - s_ii + s_ji]+, where h sums over all negatives or takes the hardest
    (VSE++, https://arxiv.org/abs/1707.05612, eq. 5 and 6). Pairs of one image are no negatives.

    Args:
        similarity: cosine of each image and caption [B, B], the pairs on the diagonal.
        positives: True where image and caption belong together [B, B], bool; masked out of the negatives.
        margin: m >= 0.
        negatives: `all` counts every violation, which is steady at the start; `hardest` only the worst of each row.
    """
    pair = similarity.diagonal()
    caption_cost = (margin + similarity - pair[:, None]).clamp(min=0).masked_fill(positives, 0)  # rows: wrong captions
    image_cost = (margin + similarity - pair[None, :]).clamp(min=0).masked_fill(positives, 0)  # columns: wrong images
    if negatives == "hardest":
        return caption_cost.amax(dim=1).sum() + image_cost.amax(dim=0).sum()
    return caption_cost.sum() + image_cost.sum()
