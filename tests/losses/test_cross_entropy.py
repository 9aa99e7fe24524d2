"""The cross entropy of soft targets and its custom gradients, against a chain of operations and finite differences."""

from __future__ import annotations

import pytest
import torch

from itr.losses.cross_entropy import cross_entropy


def inputs(kind: torch.dtype = torch.float64, scale: float = 1.0) -> list[torch.Tensor]:
    """Similarities [4, 6], a temperature [] and targets whose rows sum to 1 [4, 6]."""
    generator = torch.Generator().manual_seed(0)
    similarity = scale * torch.randn(4, 6, dtype=torch.float64, generator=generator)
    targets = torch.rand(4, 6, dtype=torch.float64, generator=generator).softmax(dim=1)
    return [value.to(kind).requires_grad_() for value in (similarity, torch.tensor(0.3), targets)]


def chain(similarity: torch.Tensor, temperature: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return -(targets * torch.log_softmax(similarity / temperature, dim=1)).sum()


def test_gradients_equal_finite_differences():
    def of_logits(similarity: torch.Tensor, temperature: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return cross_entropy(similarity, temperature, logits.softmax(dim=1))  # rows also sum to 1 at the shifted points

    assert torch.autograd.gradcheck(of_logits, inputs())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("scale", [1.0, 300.0])  # with 300, exponentials of the logits overflow
def test_it_equals_a_chain_of_operations(transposed, scale):
    results = []
    for way in (cross_entropy, chain):
        similarity, temperature, targets = (value.detach() for value in inputs(scale=scale))
        given = [similarity.T.contiguous().T if transposed else similarity, temperature, targets]
        total = way(*[value.requires_grad_() for value in given])
        (3 * total).backward()
        results.append([total, *(value.grad for value in given)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_the_gradient_of_a_confident_row_keeps_its_precision():
    """Like the chain; the difference of a large logit and a large sum would lose precision in float32."""
    similarity = torch.tensor([[1.0, 0.5, 0.0]], requires_grad=True)
    cross_entropy(similarity, 0.05, torch.tensor([[1.0, 0.0, 0.0]])).backward()
    double = torch.softmax(similarity.detach().double() / 0.05, dim=1)[0, 1].item() / 0.05
    assert similarity.grad is not None
    assert similarity.grad[0, 1].item() == pytest.approx(double, rel=1e-5)


def test_the_temperature_may_be_a_number():
    similarity, temperature, targets = inputs(torch.float32)
    given = cross_entropy(similarity, temperature, targets)
    torch.testing.assert_close(cross_entropy(similarity, 0.3, targets), given)
    assert given.dtype == torch.float32


def test_there_is_no_second_derivative():
    similarity, temperature, targets = inputs()
    loss = cross_entropy(similarity, temperature, targets)
    (first,) = torch.autograd.grad(loss, similarity, create_graph=True)
    assert not first.requires_grad
