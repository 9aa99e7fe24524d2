"""How much of the embedding space a model uses, and how: metrics of the embeddings alone, without ranking."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def effective_rank(rows: Tensor) -> float:
    """The number of directions that embeddings use: from 1 to D.

    erank(A) = exp(-sum_k p_k ln p_k) with p_k = s_k / sum_i s_i of the singular values s of A
    (Roy and Vetterli, The effective rank, EUSIPCO 2007, https://ieeexplore.ieee.org/document/7098875).

    The singular values are the square roots of the eigenvalues of A^T A, computed in float64 with a single pass over
    the rows.

    Args:
        rows: embeddings [N, D].

    Raises:
        ValueError: all embeddings are zero.
    """
    wide = rows.double()
    gram = wide.T @ wide if wide.shape[0] >= wide.shape[1] else wide @ wide.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    if not singular.sum() > 0:
        raise ValueError("the effective rank is undefined, because all embeddings are zero")
    shares = singular / singular.sum()
    return math.exp(torch.special.entr(shares).sum().item())


def alignment(first: Tensor, second: Tensor, power: float = 2.0) -> float:
    """How close true matches are to each other: from 0 (identical) to 4 (opposite).

    l_align = E ||f(x) - f(y)||^power over positive pairs, on the unit sphere
    (Wang and Isola 2020, https://arxiv.org/abs/2005.10242, equation 1).

    Args:
        first: one side of the pairs [P, D], of any length.
        second: the other side, row for row [P, D].
        power: the exponent alpha.
    """
    distance = (F.normalize(first.double(), dim=-1) - F.normalize(second.double(), dim=-1)).norm(dim=-1)
    return float(distance.pow(power).mean())


def uniformity(rows: Tensor, scale: float = 2.0, tile: int = 2048) -> float:
    """How evenly embeddings cover the unit sphere: 0 if all are equal, lower is more even.

    l_uniform = ln E exp(-scale ||f(x) - f(y)||^2) over pairs of different rows
    (Wang and Isola 2020, https://arxiv.org/abs/2005.10242, equation 2).

    Args:
        rows: embeddings [N, D], two or more, of any length.
        scale: the exponent t.
        tile: number of rows processed at a time.
    """
    unit = F.normalize(rows.double(), dim=-1)
    if len(unit) < 2:
        raise ValueError("uniformity needs at least two embeddings, but there is only one embedding")
    total = 0.0
    for part in unit.split(tile):
        squared = (2 - 2 * part @ unit.T).clamp(min=0)
        total += squared.mul_(-scale).exp_().sum().item()
    pairs = len(unit) * (len(unit) - 1)
    return math.log((total - len(unit)) / pairs)  # each row contributes 1 with itself


def modality_gap(image: Tensor, text: Tensor) -> float:
    """The distance between the mean embeddings of the two modalities: from 0 to 2.

    ||Delta|| with Delta = mean_i x_i - mean_j y_j over unit embeddings
    (Liang et al. 2022, https://arxiv.org/abs/2203.02053, section 4.2).

    Args:
        image: image embeddings [N, D], of any length.
        text: caption embeddings [M, D], of any length.
    """
    centers = [F.normalize(rows.double(), dim=-1).mean(dim=0) for rows in (image, text)]
    return float((centers[0] - centers[1]).norm())
