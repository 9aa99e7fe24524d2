"""Each loss against plain loops over its formula, on a grid of sizes, seeds and repeated images."""

from __future__ import annotations

import math
from itertools import accumulate

import pytest
import torch

from itr.losses import info_nce, sigmoid, triplet
from itr.objectives import InfoNCE, Sigmoid, Temperature, Triplet
from itr.types import Scores

CASES = [(size, images, seed) for size in (2, 5, 9) for images in (1, 3, 100) for seed in (0, 1)]


def case(size: int, images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarities, and a mask of the matching images and captions."""
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.rand(size, size, dtype=torch.float64, generator=generator) * 2 - 1
    image_id = torch.randint(images, (size,), generator=generator)
    return similarity, image_id[:, None] == image_id[None, :]


def rows_of(similarity: torch.Tensor, positives: torch.Tensor, rows: slice) -> Scores:
    return Scores(rows, similarity[rows], lambda: similarity.T[rows], positives[rows])


def naive_info_nce(similarity, positives, temperature):
    size, total = len(similarity), 0.0
    for matrix, own in ((similarity, positives), (similarity.T, positives.T)):
        for i in range(size):
            exponentials = [math.exp(matrix[i, j].item() / temperature) for j in range(size)]
            count = sum(bool(own[i, j]) for j in range(size))
            for j in range(size):
                if own[i, j]:
                    total -= math.log(exponentials[j] / sum(exponentials)) / count / size / 2
    return total


def naive_triplet(similarity, positives, margin, negatives):
    size, total = len(similarity), 0.0
    for matrix in (similarity, similarity.T):
        for i in range(size):
            costs = [0.0]
            for j in range(size):
                if not positives[i, j]:
                    costs.append(max(0.0, margin - matrix[i, i].item() + matrix[i, j].item()))
            total += max(costs) if negatives == "hardest" else sum(costs)
    return total


def naive_sigmoid(similarity, positives, temperature, bias):
    total = 0.0
    for i in range(len(similarity)):
        for j in range(len(similarity)):
            sign = 1 if positives[i, j] else -1
            total += math.log(1 + math.exp(-sign * (similarity[i, j].item() / temperature + bias)))
    return total / len(similarity)


@pytest.mark.parametrize(("size", "images", "seed"), CASES)
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_info_nce_equals_its_formula(size, images, seed, temperature):
    similarity, positives = case(size, images, seed)
    expected = naive_info_nce(similarity, positives, temperature)
    scores = Scores.whole(similarity, positives)
    assert info_nce(scores, temperature).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    scaled = info_nce(scores, temperature, scale="element_mean")
    assert scaled.item() == pytest.approx(expected / size, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("size", "images", "seed"), CASES)
@pytest.mark.parametrize("negatives", ["all", "hardest"])
def test_triplet_equals_its_formula(size, images, seed, negatives):
    similarity, positives = case(size, images, seed)
    expected = naive_triplet(similarity, positives, 0.2, negatives)
    found = triplet(Scores.whole(similarity, positives), 0.2, negatives)
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("size", "images", "seed"), CASES)
def test_sigmoid_equals_its_formula(size, images, seed):
    similarity, positives = case(size, images, seed)
    expected = naive_sigmoid(similarity, positives, 0.3, -2.0)
    assert sigmoid(Scores.whole(similarity, positives), 0.3, -2.0).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("objective", [InfoNCE(), InfoNCE(scale="element_mean"), Triplet(), Triplet(0.3, 0), Sigmoid()])
@pytest.mark.parametrize("blocks", [(9,), (4, 5), (1, 7, 1)])
def test_the_losses_of_row_blocks_sum_to_the_batch_loss(objective, blocks):
    similarity, positives = case(9, 6, 0)
    ends = list(accumulate(blocks))
    total = sum(
        objective(rows_of(similarity, positives, slice(end - size, end)), 0.5)
        for size, end in zip(blocks, ends, strict=True)
    )
    whole = objective(Scores.whole(similarity, positives), 0.5)
    assert total.item() == pytest.approx(whole.item(), rel=1e-12)


def test_info_nce_of_equal_similarities_is_the_log_of_the_batch_size():
    positives = torch.eye(8, dtype=torch.bool)
    assert info_nce(Scores.whole(torch.zeros(8, 8), positives), 0.05).item() == pytest.approx(math.log(8))


def test_a_batch_of_one_image_has_no_triplets():
    assert triplet(Scores.whole(torch.rand(4, 4), torch.ones(4, 4, dtype=torch.bool)), 0.2, "all").item() == 0


def test_triplet_has_no_gradient_where_the_margin_is_met():
    similarity = torch.eye(3, requires_grad=True)
    triplet(Scores.whole(similarity, torch.eye(3, dtype=torch.bool)), 0.2, "all").backward()
    assert similarity.grad is not None
    assert similarity.grad.abs().sum() == 0


def test_triplet_switches_and_ramps_with_progress():
    similarity, positives = case(5, 100, 0)
    objective = Triplet(margin=0.3, hardest_after=1, ramp=0.5)
    everything, hardest = (naive_triplet(similarity, positives, 0.3, n) for n in ("all", "hardest"))
    scores = Scores.whole(similarity, positives)
    assert objective(scores, 0.25).item() == pytest.approx(everything / 2)
    assert objective(scores, 0.99).item() == pytest.approx(everything)
    assert objective(scores, 1.0).item() == pytest.approx(hardest)


@pytest.mark.parametrize("objective", [InfoNCE(temperature=0.1), Sigmoid(temperature=0.005)])
def test_a_learnable_temperature_changes_and_stays_within_its_bounds(objective):
    scores = Scores.whole(*case(6, 100, 0))
    optimizer = torch.optim.SGD(objective.parameters(), lr=10.0)
    objective(scores, 0.0).backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())
    optimizer.step()
    objective.clamp()
    low, high = objective.temperature.bounds
    assert torch.tensor(low) <= objective.scalars()["temperature"] <= torch.tensor(high)


def test_a_fixed_temperature_is_not_trained():
    assert not [p for p in InfoNCE(learnable_temperature=False).parameters() if p.requires_grad]


@pytest.mark.parametrize(("initial", "bounds"), [(0.5, (0.01, 0.1)), (0.01, (0.0, 0.1)), (-1.0, (-2.0, 1.0))])
def test_a_temperature_outside_its_bounds_is_rejected(initial, bounds):
    with pytest.raises(ValueError, match=str(initial)):
        Temperature(initial, bounds, learnable=True)


def test_a_negative_margin_is_rejected():
    with pytest.raises(ValueError, match="margin=-1"):
        Triplet(margin=-1)


def test_triplet_equals_the_authors_numbers(shared):
    from safetensors.torch import load_file

    fixture = load_file(shared / "golden" / "triplet.safetensors")
    image, text = (torch.nn.functional.normalize(fixture[f"in.{name}"], dim=-1) for name in ("image", "text"))
    image_id = fixture["in.image_index"]
    positives = image_id[:, None] == image_id[None, :]
    for name, negatives in (("mean", "all"), ("max", "hardest")):
        found = triplet(Scores.whole(image @ text.T, positives), 0.2, negatives)
        torch.testing.assert_close(found, fixture[f"out.loss_{name}"], rtol=1e-6, atol=1e-7)
