"""Distance between a student's embedding and its teacher's."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

DistillationKind = Literal["cosine", "l1", "l2"]


def distillation(student: Tensor, teacher: Tensor, kind: DistillationKind = "cosine") -> Tensor:
    """Distance of each embedding from the teacher's, averaged over the rows; only the student gets a gradient.

    cosine: L = 1 - 1/B sum_b cos(s_b, t_b), the loss of D2S-VSE (ICCV 2025, https://github.com/liuyyy111/d2s-vse);
    l1: L = 1/(B D) sum_bd |s_bd - t_bd|; l2: L = 1/(B D) sum_bd (s_bd - t_bd)^2, its ablations, without normalization.

    Args:
        student: embeddings [B, D].
        teacher: embeddings of the same pairs [B, D].
        kind: distance to use.

    Raises:
        ValueError: the shapes differ, or the distance is unknown.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student {list(student.shape)} and teacher {list(teacher.shape)} must have the same shape: "
            "another method changes the width of the text embedding; list D2S before it"
        )
    teacher = teacher.detach().to(student.dtype)
    if kind == "cosine":
        return 1 - F.cosine_similarity(student, teacher, dim=-1).mean()
    if kind == "l1":
        return F.l1_loss(student, teacher)
    if kind == "l2":
        return F.mse_loss(student, teacher)
    raise ValueError(f"unknown distillation {kind!r}; choose one of cosine, l1, l2")
