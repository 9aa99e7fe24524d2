"""Soft-label alignment against plain loops over its formula, and cases with a known answer."""

from __future__ import annotations

import math

import pytest
import torch

from itr.losses import cross_modal_targets, soft_label_alignment, teacher_similarity

ALL = slice(None)
CASES = [(size, seed, t, soft) for size in (2, 7) for seed in (0, 1) for t in (0.1, 0.45) for soft in (0.3, 1.0)]


def matrices(size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    similarity, teacher = torch.rand(2, size, size, dtype=torch.float64, generator=generator) * 2 - 1
    return similarity, teacher


def softmax(row, temperature):
    exponentials = [math.exp(value.item() / temperature) for value in row]
    return [value / sum(exponentials) for value in exponentials]


@pytest.mark.parametrize(("size", "seed", "t", "soft"), CASES)
def test_alignment_equals_its_formula(size, seed, t, soft):
    similarity, teacher = matrices(size, seed)
    kl = entropy = 0.0
    for i in range(size):
        p, q = softmax(teacher[i], soft), softmax(similarity[i], t)
        kl += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / size
        entropy -= sum(a * math.log(a) for a in p) / size
    assert soft_label_alignment(similarity, teacher, t, soft).item() == pytest.approx(kl, rel=1e-9)
    found = soft_label_alignment(similarity, teacher, t, soft, "cross_entropy").item()
    assert found == pytest.approx(kl + entropy, rel=1e-9)
    found = soft_label_alignment(similarity, teacher, t, soft, "cross_entropy_element_mean").item()
    assert found == pytest.approx((kl + entropy) / size, rel=1e-9)


@pytest.mark.parametrize("loss", ["kl", "cross_entropy", "cross_entropy_element_mean"])
def test_the_losses_of_row_blocks_sum_to_the_batch_loss(loss):
    similarity, teacher = matrices(7, 2)
    whole = soft_label_alignment(similarity, teacher, 0.3, 0.7, loss)
    shares = [soft_label_alignment(similarity[rows], teacher[rows], 0.3, 0.7, loss) for rows in (slice(4), slice(4, 7))]
    assert sum(shares).item() == pytest.approx(whole.item(), rel=1e-12)
    block, rows = teacher_similarity(teacher, slice(4, 7)), teacher_similarity(teacher, ALL)[4:7]
    torch.testing.assert_close(block, rows, rtol=0, atol=1e-14)


def test_agreement_with_the_teacher_gives_no_divergence():
    _, teacher = matrices(5, 0)
    similarity = teacher.clone().requires_grad_()
    loss = soft_label_alignment(similarity * 0.3, teacher, 0.3)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-14)
    assert similarity.grad.abs().max() < 1e-14


def test_the_loss_of_equal_similarities_is_log_b_minus_the_entropy():
    """All similarities equal: KL = log B - entropy; with a teacher of one-hot rows that is log B."""
    loss = soft_label_alignment(torch.zeros(6, 6), 200 * torch.eye(6), 0.45)
    assert loss.item() == pytest.approx(math.log(6))


def test_a_learnable_soft_temperature_gets_its_gradient():
    similarity, teacher = matrices(4, 0)
    soft = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: soft_label_alignment(similarity, teacher, 0.4, s), soft)


def test_targets_are_combined_as_documented():
    image, text = matrices(5, 3)
    assert cross_modal_targets(image, text, "each") == (image, text)
    for kind in ("add", "dot"):
        first, second = cross_modal_targets(image, text, kind)
        assert first is second
        for i in range(5):
            for j in range(5):
                a, b = image[i, j].item(), text[i, j].item()
                expected = (a + b) / 2 if kind == "add" else math.sqrt(max(a, 0) * max(b, 0))
                assert first[i, j].item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="each, add, dot"):
        cross_modal_targets(image, text, "mean")
    with pytest.raises(ValueError, match="kl, cross_entropy"):
        soft_label_alignment(image, text, 1.0, loss="mse")


def test_half_precision_features_are_converted_before_computing():
    """The norm of long features overflows in float16; the published image teacher has 37,632 of them."""
    features = (20 * torch.randn(4, 3, 1000, generator=torch.Generator().manual_seed(0))).half()
    features[3] = 0
    found = teacher_similarity(features, ALL)
    rows = features[:3].double().flatten(1)
    expected = (rows @ rows.T) / (rows.norm(dim=1)[:, None] * rows.norm(dim=1)[None, :])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[:3, :3].double(), expected, rtol=1e-5, atol=1e-6)
    assert not found[3].any()
    assert teacher_similarity(features.double(), ALL).dtype == torch.float64


def test_the_teacher_gets_no_gradient():
    features = torch.randn(3, 4, requires_grad=True)
    assert not teacher_similarity(features, ALL).requires_grad
