"""Paired bootstrap: against a plain loop, with and without a planted difference, and the coverage of its interval."""

from __future__ import annotations

import numpy as np
import pytest

from itr.evaluation.bootstrap import paired_bootstrap


def queries(seed: int, images: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 6, size=(images, 1))
    return rng.binomial(counts, 0.5), rng.binomial(counts, 0.5), counts


def test_against_a_loop_over_draws():
    first, second, counts = queries(0, images=9)
    found = paired_bootstrap(first, second, counts, draws=200, seed=3)[0]
    rng = np.random.default_rng(3)
    differences = []
    for _ in range(200):
        taken = rng.multinomial(9, np.full(9, 1 / 9))
        drawn = [image for image, times in enumerate(taken) for _ in range(times)]
        number = sum(counts[i, 0] for i in drawn)
        differences.append(sum(int(second[i, 0]) - int(first[i, 0]) for i in drawn) / number)
    assert found.value == pytest.approx((second.sum() - first.sum()) / counts.sum())
    assert [found.low, found.high] == pytest.approx(list(np.quantile(differences, [0.025, 0.975])))
    below, above = np.mean(np.array(differences) <= 0), np.mean(np.array(differences) >= 0)
    assert found.p == pytest.approx(min(1, 2 * min(below, above)), abs=0.02)


def test_a_run_does_not_differ_from_itself():
    first, _, counts = queries(1)
    found = paired_bootstrap(first, first, counts, total=True)
    assert [(d.value, d.low, d.high, d.p) for d in found] == [(0, 0, 0, 1)] * 2


def test_a_planted_difference_is_found_and_changes_sign_with_the_order():
    rng = np.random.default_rng(2)
    counts = np.full((200, 2), 5)
    first = rng.binomial(counts, [0.4, 0.5])
    second = np.minimum(first + rng.binomial(1, [0.6, 0.0], size=(200, 2)), 5)
    planted, none, total = paired_bootstrap(first, second, counts, total=True)
    assert planted.low > 0
    assert planted.p < 0.01
    assert (none.value, none.p) == (0, 1)
    assert total.value == pytest.approx(planted.value + none.value)
    turned = paired_bootstrap(second, first, counts)[0]
    assert turned.value == -planted.value
    assert turned.high < 0


def test_the_same_seed_repeats_and_shapes_must_agree():
    first, second, counts = queries(4)
    assert paired_bootstrap(first, second, counts, draws=150) == paired_bootstrap(first, second, counts, draws=150)
    with pytest.raises(ValueError, match="shapes differ"):
        paired_bootstrap(first, second[:-1], counts)


def test_the_interval_covers_zero_about_as_often_as_its_level():
    covered = rejected = 0
    for seed in range(150):
        found = paired_bootstrap(*queries(seed + 10), draws=300, seed=seed)[0]
        covered += found.low <= 0 <= found.high
        rejected += found.p < 0.05
    assert covered >= 0.88 * 150
    assert rejected <= 0.12 * 150
