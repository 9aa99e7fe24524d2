"""Whether two models that answered the same queries differ by more than the choice of queries explains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Difference:
    """A difference of two figures, second minus first, with an interval and a two-sided p-value."""

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
    """Differences of means over queries, the images being drawn anew with all that belongs to them.

    Figure f of a model is sum_i w_i x_if / sum_i w_i c_if. Each draw takes N images with replacement, w_i being how
    often image i was taken, the same for both models (Efron and Tibshirani, An introduction to the bootstrap, 1993,
    chapters 13 and 16). Captions of one image resemble each other, so they are drawn together. The interval runs
    between percentiles of the drawn differences d*, and p = 2 min(P(d* <= 0), P(d* >= 0)), at most 1, each share
    counted as (1 + hits) / (1 + draws).

    Args:
        first: what the queries of each image add up to under the first model, such as hits [N, F].
        second: the same under the second model [N, F].
        counts: the number of queries of each image [N, F].
        total: add a last figure that is the sum of all.
        draws: how often images are drawn.
        seed: of the draws.
        level: share of the drawn differences inside the interval.
    """
    if not first.shape == second.shape == counts.shape:
        raise ValueError(f"shapes differ: {first.shape}, {second.shape} and {counts.shape}")
    rng = np.random.default_rng(seed)
    change = (second - first).astype(np.float64)
    observed = _ratio(np.ones((1, len(change))), change, counts, total)[0]
    drawn = [
        _ratio(rng.multinomial(len(change), np.full(len(change), 1 / len(change)), size=size), change, counts, total)
        for size in _portions(draws, 100)
    ]
    return [_summary(value, column, level) for value, column in zip(observed, np.concatenate(drawn).T, strict=True)]


def _portions(total: int, size: int) -> list[int]:
    """Draws taken at a time: their weights need 8 bytes for each image."""
    return [size] * (total // size) + ([total % size] if total % size else [])


def _ratio(weights: np.ndarray, change: np.ndarray, counts: np.ndarray, total: bool) -> np.ndarray:
    """Weighted means [draws, F], with their sum as a last column where asked for."""
    queries = weights @ counts.astype(np.float64)
    ratio = (weights @ change) / np.maximum(queries, 1e-12)  # a draw may hold no query of a figure
    return np.hstack([ratio, ratio.sum(axis=1, keepdims=True)]) if total else ratio


def _summary(value: float, drawn: np.ndarray, level: float) -> Difference:
    # Sums of the same hits in another order may differ in the last bit.
    drawn = np.where(np.abs(drawn) < 1e-12, 0.0, drawn)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    tails = [(1 + int((drawn <= 0).sum())) / (1 + len(drawn)), (1 + int((drawn >= 0).sum())) / (1 + len(drawn))]
    return Difference(float(value), float(low), float(high), min(1.0, 2 * min(tails)))
