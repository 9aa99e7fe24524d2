"""Capacity metrics against plain loops and closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from itr.report.content.capacity import alignment, effective_rank, modality_gap, uniformity


def unit(row: torch.Tensor) -> list[float]:
    length = math.sqrt(sum(float(x) ** 2 for x in row))
    return [float(x) / length for x in row]


def distance(first: list[float], second: list[float]) -> float:
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(first, second, strict=True)))


@pytest.mark.parametrize(("rows", "width"), [(7, 4), (4, 7), (1, 3)])
def test_effective_rank_against_its_formula(rows, width):
    matrix = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))
    singular = torch.linalg.svdvals(matrix.double()).tolist()
    shares = [value / sum(singular) for value in singular]
    assert effective_rank(matrix) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-6)


def test_effective_rank_of_known_matrices():
    assert effective_rank(torch.eye(5)) == pytest.approx(5)
    assert effective_rank(torch.ones(6, 4)) == pytest.approx(1, abs=1e-5)
    assert effective_rank(torch.diag(torch.tensor([3.0, 3.0, 0.0]))) == pytest.approx(2, abs=1e-5)
    with pytest.raises(ValueError, match="embeddings are zero"):
        effective_rank(torch.zeros(3, 2))


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_alignment_against_a_loop(power):
    first, second = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    loop = [distance(unit(a), unit(b)) ** power for a, b in zip(first, second, strict=True)]
    assert alignment(first, second, power) == pytest.approx(sum(loop) / 6)
    assert alignment(first, 3 * first) == pytest.approx(0, abs=1e-12)
    assert alignment(first, -first) == pytest.approx(4)


@pytest.mark.parametrize("tile", [2, 100])
def test_uniformity_against_a_loop(tile):
    rows = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    loop = [math.exp(-2 * distance(unit(rows[i]), unit(rows[j])) ** 2) for i in range(7) for j in range(7) if i != j]
    assert uniformity(rows, tile=tile) == pytest.approx(math.log(sum(loop) / len(loop)))
    assert uniformity(torch.ones(4, 3)) == pytest.approx(0, abs=1e-9)
    assert uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8)
    with pytest.raises(ValueError, match="one embedding"):
        uniformity(rows[:1])


def test_modality_gap():
    image = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    text = torch.tensor([[-1.0, 0.0], [0.0, -7.0], [0.0, -1.0]])
    assert modality_gap(image, text) == pytest.approx(math.hypot(0.5 + 1 / 3, 0.5 + 2 / 3))
    assert modality_gap(image, 9 * image) == pytest.approx(0)
    assert modality_gap(image[:1], -image[:1]) == pytest.approx(2)
