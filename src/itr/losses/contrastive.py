"""InfoNCE and its sigmoid relative."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Scale = Literal["standard", "element_mean"]


def cross_entropy_rows(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of soft targets, one value a row [N], of logits [N, M] against probabilities [N, M]."""
    return -(targets * F.log_softmax(logits, dim=1)).sum(dim=1)


def info_nce(similarity: Tensor, positives: Tensor, temperature: Tensor | float, scale: Scale = "standard") -> Tensor:
    """Symmetric InfoNCE where the positives of a row share its probability mass evenly.

    L = 1/2 [ CE(P, softmax_j(s_ij / t)) + CE(P', softmax_i(s_ij / t)) ], with P_ij = y_ij / sum_k y_ik and P' the same
    over columns; one positive a row gives the loss of CLIP (https://arxiv.org/abs/2103.00020, figure 3), several the
    one that CUSA trains with (https://arxiv.org/abs/2403.05261, eq. 2).

    Args:
        similarity: cosine of each image and caption [B, B].
        positives: True where image and caption belong together [B, B], bool, at least one in each row and column.
        temperature: t > 0.
        scale: `standard` averages over rows. `element_mean` divides by the number of rows once more, as the authors of
            CUSA do in their configs; it makes every other loss term B times heavier in comparison.
    """
    logits = similarity / temperature
    mass = positives.to(logits.dtype)
    image_to_text = cross_entropy_rows(logits, mass / mass.sum(dim=1, keepdim=True))
    text_to_image = cross_entropy_rows(logits.T, (mass / mass.sum(dim=0, keepdim=True)).T)
    loss = (image_to_text.mean() + text_to_image.mean()) / 2
    return loss / len(similarity) if scale == "element_mean" else loss


def sigmoid(similarity: Tensor, positives: Tensor, temperature: Tensor | float, bias: Tensor | float) -> Tensor:
    """Sigmoid loss of SigLIP: every pair is a yes-or-no question of its own.

    L = -1/B sum_ij log sigmoid(z_ij (s_ij / t + b)), z = +1 at positives and -1 elsewhere
    (https://arxiv.org/abs/2303.15343, algorithm 1; t here is one over the paper's t).

    Args:
        similarity: cosine of each image and caption [B, B].
        positives: True where image and caption belong together [B, B], bool.
        temperature: t > 0.
        bias: b, negative at the start, for most pairs are negatives.
    """
    logits = similarity / temperature + bias
    signs = torch.where(positives, 1.0, -1.0).to(logits.dtype)
    return -F.logsigmoid(signs * logits).sum() / len(similarity)
