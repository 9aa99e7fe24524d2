"""InfoNCE and the sigmoid loss."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from itr.losses.cross_entropy import cross_entropy
from itr.types import Scores

Scale = Literal["standard", "element_mean"]


def info_nce(scores: Scores, temperature: Tensor | float, scale: Scale = "standard") -> Tensor:
    """Symmetric InfoNCE where the positives of a row share its probability mass evenly, for some rows.

    L = 1/2 [ CE(P, softmax_j(s_ij / t)) + CE(P', softmax_i(s_ij / t)) ], with P_ij = y_ij / sum_k y_ik and P' the same
    over columns; with one positive per row, it is CLIP's loss (https://arxiv.org/abs/2103.00020, figure 3); with
    several, it is CUSA's (https://arxiv.org/abs/2403.05261, eq. 2).

    Args:
        scores: cosines of R pairs' images and captions with all B; at least one positive in each row.
        temperature: t > 0.
        scale: `standard` averages over rows. `element_mean` divides by the number of rows again, as CUSA's authors do
            in their configs; relative to it, every other loss term weighs B times more.
    """
    targets = scores.positives.to(scores.image_to_text.dtype)
    targets /= targets.sum(dim=1, keepdim=True)
    image_to_text = cross_entropy(scores.image_to_text, temperature, targets)
    text_to_image = cross_entropy(scores.text_to_image, temperature, targets)
    loss = (image_to_text + text_to_image) / (2 * scores.size)
    return loss / scores.size if scale == "element_mean" else loss


def sigmoid(scores: Scores, temperature: Tensor | float, bias: Tensor | float) -> Tensor:
    """Sigmoid loss of SigLIP: each pair is an independent binary classification; the part of the loss of some images.

    L = -1/B sum_ij log sigmoid(z_ij (s_ij / t + b)), z = +1 at positives and -1 elsewhere
    (https://arxiv.org/abs/2303.15343, algorithm 1; t here is one over the paper's t).

    Args:
        scores: cosines of R pairs' images with all B captions; caption-to-image scores would be the same pairs.
        temperature: t > 0.
        bias: b, negative at the start, since most pairs are negatives.
    """
    logits = scores.image_to_text * (1 / temperature) + bias
    wrong = torch.where(scores.positives, -logits, logits)
    return F.softplus(wrong, threshold=40).sum() / scores.size  # above 40, softplus equals the identity even in float64
