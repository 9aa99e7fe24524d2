"""Paired bootstrap: test whether two models differ on the same queries by more than the choice of queries explains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Difference:
    """Difference of a metric, second model minus first, with a confidence interval and a two-sided p-value."""

    value: float
    low: float
    high: float
    p: float


def paired_bootstrap(
    first: np.ndarray,
    second: np.ndarray,
    counts: np.ndarray,
    total: bool = False,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Difference]:
    """Differences of means over queries, with images resampled together with all their queries.

    Metric f of a model is sum_i w_i x_if / sum_i w_i c_if. Each draw takes N images with replacement; w_i is how often
    image i was taken, the same for both models (Efron and Tibshirani, An introduction to the bootstrap, 1993, chapters
    13 and 16). Captions of one image are correlated, so they are drawn together. The interval is between percentiles
    of the drawn differences d*, and p = 2 min(P(d* <= 0), P(d* >= 0)), at most 1, where each probability is estimated
    as (1 + count) / (1 + draws).

    Args:
        first: sum over the queries of each image under the first model, such as the number of hits [N, F].
        second: the same under the second model [N, F].
        counts: number of queries of each image [N, F].
        total: add a last metric that is the sum of all others.
        draws: number of draws.
        seed: seed of the draws.
        level: fraction of the drawn differences inside the interval.
    """
    if not first.shape == second.shape == counts.shape:
        raise ValueError(f"shapes differ: {first.shape}, {second.shape} and {counts.shape}")
    rng = np.random.default_rng(seed)
    change = (second - first).astype(np.float64)
    observed = _ratio(np.ones((1, len(change))), change, counts, total)[0]
    drawn = [
        _ratio(rng.multinomial(len(change), np.full(len(change), 1 / len(change)), size=size), change, counts, total)
        for size in _chunk_sizes(draws, 100)
    ]
    return [_summary(value, column, level) for value, column in zip(observed, np.concatenate(drawn).T, strict=True)]


def _chunk_sizes(total: int, size: int) -> list[int]:
    """Numbers of draws to process at a time, because the weights of a draw take 8 bytes per image."""
    return [size] * (total // size) + ([total % size] if total % size else [])


def _ratio(weights: np.ndarray, change: np.ndarray, counts: np.ndarray, total: bool) -> np.ndarray:
    """Weighted means [draws, F], with their sum as a last column if `total` is set."""
    queries = weights @ counts.astype(np.float64)
    ratio = (weights @ change) / np.maximum(queries, 1e-12)  # a draw may contain no query of a metric
    return np.hstack([ratio, ratio.sum(axis=1, keepdims=True)]) if total else ratio


def _summary(value: float, drawn: np.ndarray, level: float) -> Difference:
    # Sums of the same hits in a different order may differ in the last bit.
    drawn = np.where(np.abs(drawn) < 1e-12, 0.0, drawn)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    tails = [(1 + int((drawn <= 0).sum())) / (1 + len(drawn)), (1 + int((drawn >= 0).sum())) / (1 + len(drawn))]
    return Difference(float(value), float(low), float(high), min(1.0, 2 * min(tails)))
