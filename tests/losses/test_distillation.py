"""The distillation losses against plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from itr.losses.distillation import distillation


def plain(student, teacher, kind):
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        if kind == "cosine":
            dot = sum(a * b for a, b in zip(s, t, strict=True))
            total += 1 - dot / math.sqrt(sum(a * a for a in s) * sum(b * b for b in t))
        elif kind == "l1":
            total += sum(abs(a - b) for a, b in zip(s, t, strict=True)) / len(s)
        else:
            total += sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(s)
    return total / len(student)


@pytest.mark.parametrize("kind", ["cosine", "l1", "l2"])
@pytest.mark.parametrize(("rows", "dim"), [(1, 1), (2, 5), (7, 3)])
def test_equals_plain_loops(kind, rows, dim):
    torch.manual_seed(rows + dim)
    student, teacher = torch.randn(2, rows, dim, dtype=torch.float64)
    assert distillation(student, teacher, kind).item() == pytest.approx(plain(student, teacher, kind), abs=1e-12)


@pytest.mark.parametrize("kind", ["cosine", "l1", "l2"])
def test_only_the_student_learns(kind):
    student, teacher = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    distillation(student, teacher, kind).backward()
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize(("kind", "far"), [("cosine", 2.0), ("l1", 2.0), ("l2", 4.0)])
def test_closed_forms(kind, far):
    ones = torch.ones(2, 3)
    assert distillation(ones, ones, kind).item() == pytest.approx(0, abs=1e-6)
    assert distillation(ones, -ones, kind).item() == pytest.approx(far)


def test_the_cosine_ignores_norms():
    student, teacher = torch.randn(2, 3, 4, dtype=torch.float64)
    assert distillation(3 * student, teacher).item() == pytest.approx(distillation(student, teacher).item())


def test_the_teacher_may_be_in_half_precision():
    assert distillation(torch.ones(2, 3), torch.ones(2, 3).half(), "l2") == 0


def test_other_shapes_and_names_are_rejected():
    with pytest.raises(ValueError, match="same shape"):
        distillation(torch.ones(2, 3), torch.ones(2, 1))
    with pytest.raises(ValueError, match="'cos'; choose one of cosine, l1, l2"):
        distillation(torch.ones(2, 3), torch.ones(2, 3), "cos")  # type: ignore[arg-type]
