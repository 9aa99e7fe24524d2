"""Soft-label alignment: similarities within a batch should match those of a frozen teacher."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from itr.losses.cross_entropy import cross_entropy

Targets = Literal["each", "add", "dot"]
SoftLoss = Literal["kl", "cross_entropy", "cross_entropy_element_mean"]


@torch.no_grad()
def teacher_similarity(features: Tensor, rows: slice) -> Tensor:
    """Cosine of some rows with every row [R, B], in float32 or wider, without a gradient.

    Args:
        features: a frozen teacher's features [B, ...] of any width and precision; a row of zeros has similarity 0
            to all.
        rows: the R rows to compare with all.
    """
    wide = features if features.dtype == torch.float64 else features.float()
    unit = F.normalize(wide.flatten(1), dim=1)
    return unit[rows] @ unit.T


@torch.no_grad()
def cross_modal_targets(image: Tensor, text: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Targets for image-to-text and text-to-image similarities, from the similarities within each modality.

    `each`: (I, T), as in the paper (https://arxiv.org/abs/2403.05261); `add`: (I + T) / 2 for both;
    `dot`: sqrt([I]+ [T]+) for both, which are further options of the authors' code.

    Args:
        image: teacher's similarities of images with images, I [R, B].
        text: teacher's similarities of texts with texts, T [R, B].
        targets: how to combine them.
    """
    if targets == "each":
        return image, text
    if targets == "add":
        joint = (image + text) / 2
    elif targets == "dot":
        joint = (image.clamp(min=0) * text.clamp(min=0)).sqrt()
    else:
        raise ValueError(f"unknown targets {targets!r}; choose one of each, add, dot")
    return joint, joint


def soft_label_alignment(
    similarity: Tensor,
    teacher: Tensor,
    temperature: Tensor | float,
    soft_temperature: Tensor | float = 1.0,
    loss: SoftLoss = "kl",
) -> Tensor:
    """Divergence of the softmax of each row of similarities from the teacher's; the part of the loss of R of B rows.

    L = 1/B sum_i KL(P_i || Q_i), P_i = softmax_j(u_ij / t_s), Q_i = softmax_j(s_ij / t)
    (https://arxiv.org/abs/2403.05261; one direction of CSA or one modality of USA).

    Args:
        similarity: the model's, s [R, B].
        teacher: the teacher's, u [R, B].
        temperature: t > 0.
        soft_temperature: t_s > 0.
        loss: `kl`; `cross_entropy` omits the teacher's entropy, which only affects the gradient of t_s;
            `cross_entropy_element_mean` divides by B again, as the authors' code does with
            `contrastive_loss_mode: mean`.
    """
    rate = soft_temperature.reciprocal() if isinstance(soft_temperature, Tensor) else 1 / soft_temperature
    log_target = F.log_softmax(teacher * rate, dim=1)
    target, size = log_target.exp(), similarity.shape[1]
    negative_entropy = (target * log_target).sum() if loss == "kl" else None
    del log_target  # free it before the next matrices are allocated
    total = cross_entropy(similarity, temperature, target)
    if negative_entropy is not None:
        return (total + negative_entropy) / size
    if loss == "cross_entropy":
        return total / size
    if loss == "cross_entropy_element_mean":
        return total / size**2
    raise ValueError(f"unknown loss {loss!r}; choose one of kl, cross_entropy, cross_entropy_element_mean")
