"""Rank correlation of similarities with human judgements, over all pairs and with the sampling of CxC."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from itr.errors import UserError
from itr.evaluation.cosine import Cosine


def pair_cosines(first: Tensor, second: Tensor) -> np.ndarray:
    """Cosines of corresponding rows of two matrices [N, D] of any precision: [N], float32.

    Computed by `Cosine`: pairs of equal embeddings tie, and the cosine of an embedding with itself is exactly 1.
    """
    rows = torch.arange(len(first), device=first.device)
    found: np.ndarray = Cosine(first, second).pairs(rows, rows).cpu().numpy()
    return found


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, the smallest [N]; equal values share the mean of their ranks."""
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    last = count.cumsum()
    ranks: np.ndarray = (last - (count - 1) / 2)[group]
    return ranks


def correlation(similarity: np.ndarray, gold: np.ndarray) -> float:
    """Spearman's rank correlation of similarities and judgements [N]: Pearson's of their average ranks, in float64.

    NOTE: torchmetrics' `spearman_corrcoef` (1.9.0) is not used. It adds the ranks of equal values in int32, so the
    result for 70,000 pairs with 69,300 equal judgements has the wrong sign; it returns float32 for float64 input, and
    0 if the correlation is undefined.

    Raises:
        UserError: the correlation is undefined because all values of one side are equal, or some are not finite.
    """
    for name, values in (("similarities", similarity), ("judgements", gold)):
        if not np.isfinite(values).all():
            raise UserError(f"{int((~np.isfinite(values)).sum())} of {len(values)} {name} are not finite numbers")
        if len(values) < 2 or (values == values[0]).all():
            raise UserError(f"all {len(values)} {name} are equal, so they have no rank correlation")
    return float(np.corrcoef(average_ranks(similarity), average_ranks(gold))[0, 1])


def bootstrap_correlation(
    similarity: np.ndarray, gold: np.ndarray, query: np.ndarray, samples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation of `correlation` over samples of pairs that do not share a query.

    The judged pairs of one query are not independent, so Crisscrossed Captions draws half of the queries, and one
    judged item of each, a thousand times (https://arxiv.org/abs/2004.15020).

    Args:
        similarity: the model's score of each pair [N].
        gold: the judgement of each pair [N].
        query: the query that each pair belongs to [N], numbers or names.
        samples: number of draws.
        seed: seed of the draws.
    """
    _, group, count = np.unique(query, return_inverse=True, return_counts=True)
    by_query, start = np.argsort(group, kind="stable"), count.cumsum() - count
    draw, found = np.random.default_rng(seed), []
    for _ in range(samples):
        queries = draw.permutation(len(count))[: max(2, len(count) // 2)]
        pairs = by_query[start[queries] + draw.integers(count[queries])]
        found.append(correlation(similarity[pairs], gold[pairs]))
    return float(np.mean(found)), float(np.std(found))
