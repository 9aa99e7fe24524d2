"""Poolings against plain loops over their definitions."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from itr.backbones.pooling import GPO, PoolingKind, make_pooling, positional_code

SHARED = Path(__file__).parents[2].parent / "shared"


@pytest.fixture
def golden() -> dict[str, Tensor]:
    path = SHARED / "golden" / "gpo.safetensors"
    if not path.is_file():
        pytest.skip("the authors' numbers (shared/golden/gpo.safetensors) are not here")
    from safetensors.torch import load_file

    return load_file(path)


def prefix_mask(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(1)


def gpo_of_one(gpo: GPO, features: Tensor) -> Tensor:
    """The formula for the real tokens [K, D] of one sample."""
    states = gpo.gru(positional_code(len(features), gpo.position_dim).to(features.dtype).unsqueeze(0))[0][0]
    forward, backward = states.chunk(2, dim=-1)
    weights = (gpo.linear((forward + backward) / 2).squeeze(-1) / gpo.temperature).softmax(dim=0)
    return torch.stack([(weights * column.sort(descending=True).values).sum() for column in features.T])


@pytest.mark.parametrize("lengths", [[7, 1, 4], [3, 7, 7, 2, 7, 1, 5, 6, 7]])  # fewer and more rows than positions
def test_gpo_equals_its_formula(lengths: list[int]) -> None:
    torch.manual_seed(0)
    gpo = GPO().double()
    features = torch.randn(len(lengths), 7, 5, dtype=torch.float64, requires_grad=True)
    scale = torch.arange(1, 6)

    pooled = gpo(features, prefix_mask(lengths, 7))
    expected = torch.stack([gpo_of_one(gpo, row[:length]) for row, length in zip(features, lengths, strict=True)])
    variables = [features, *gpo.parameters()]
    actual_gradients = torch.autograd.grad((pooled * scale).sum(), variables)
    expected_gradients = torch.autograd.grad((expected * scale).sum(), variables)

    torch.testing.assert_close(pooled, expected, rtol=1e-10, atol=1e-12)
    for actual, wanted in zip(actual_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-8, atol=1e-10)


def test_gpo_equals_the_authors_numbers(golden: dict[str, Tensor]) -> None:
    gpo = GPO().double()
    gpo.load_state_dict({name[len("param.") :]: value for name, value in golden.items() if name.startswith("param.")})
    features, lengths = golden["in.features"].requires_grad_(), golden["in.lengths"]
    mask = prefix_mask(lengths.tolist(), features.shape[1])

    pooled = gpo(features, mask)
    (pooled * torch.arange(1, features.shape[2] + 1)).sum().backward()

    close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-7)
    close(pooled, golden["out.pooled"])
    close(gpo.weights(lengths, features.shape[1]), golden["out.weights"])
    close(features.grad, golden["grad.features"])
    for name, parameter in gpo.named_parameters():
        close(parameter.grad, golden[f"grad.param.{name}"])


@pytest.mark.parametrize("kind", ["gpo", "mean", "max", "cls"])
@pytest.mark.parametrize("filler", [0.0, 1e4, float("nan"), float("inf")])
def test_padding_has_no_effect(kind: PoolingKind, filler: float) -> None:
    torch.manual_seed(0)
    pooling = make_pooling(kind)
    features = torch.randn(3, 6, 4)
    mask = prefix_mask([6, 2, 3], 6)
    padded = torch.full((3, 11, 4), filler)
    padded[:, :6] = features.where(mask.unsqueeze(-1), torch.tensor(filler))

    torch.testing.assert_close(pooling(padded, prefix_mask([6, 2, 3], 11)), pooling(features, mask))


@pytest.mark.parametrize("kind", ["gpo", "mean", "max"])
def test_mask_with_gaps_equals_the_kept_tokens(kind: PoolingKind) -> None:
    torch.manual_seed(0)
    pooling = make_pooling(kind)
    features = torch.randn(1, 6, 4)
    keep = torch.tensor([[True, False, True, True, False, True]])

    expected = pooling(features[:, keep[0]], torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(pooling(features, keep), expected)


def test_mean_max_and_first_token_pooling() -> None:
    features = torch.tensor([[[1.0, 5.0], [3.0, 1.0], [99.0, 99.0]]])
    mask = prefix_mask([2], 3)

    assert make_pooling("mean")(features, mask).tolist() == [[2.0, 3.0]]
    assert make_pooling("max")(features, mask).tolist() == [[3.0, 5.0]]
    assert make_pooling("cls")(features, mask).tolist() == [[1.0, 5.0]]


@pytest.mark.parametrize("kind", ["gpo", "mean", "max"])
def test_a_row_without_tokens_gives_zeros(kind: PoolingKind) -> None:
    pooled = make_pooling(kind)(torch.randn(2, 3, 4), prefix_mask([0, 3], 3))

    assert pooled[0].tolist() == [0.0] * 4
    assert pooled.isfinite().all()


@pytest.mark.parametrize("kind", ["gpo", "mean", "max", "cls"])
def test_bfloat16_autocast(kind: PoolingKind) -> None:
    torch.manual_seed(0)
    pooling, features, mask = make_pooling(kind), torch.randn(3, 6, 4), prefix_mask([6, 2, 3], 6)

    with torch.autocast("cpu", torch.bfloat16):
        pooled = pooling(features.bfloat16(), mask)

    torch.testing.assert_close(pooled.float(), pooling(features, mask), rtol=0.05, atol=0.05)


def test_unknown_pooling() -> None:
    with pytest.raises(ValueError, match="choose one of gpo, mean, max, cls"):
        make_pooling("median")  # type: ignore[arg-type]
