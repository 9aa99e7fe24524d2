"""A loss that is differentiated block by block: its gradients, the tensors that get them, and their limits."""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections.abc import Callable

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from exact_parts import BATCH, make_batch, make_module
from itr.training.large_batch import LargeBatch
from itr.training.loss_blocks import Terms, sum_of_blocks
from itr.training.optim import loss_scale
from itr.types import Encoded

BLOCKS = [slice(0, 5), slice(5, 10), slice(10, 12)]
Share = Callable[[Encoded, Encoded, dict[str, Tensor], slice], Terms]


class Head(nn.Module):
    """A parameter that the loss uses, one that only the second block uses, and one that is unused."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.used, self.seldom, self.unused = (
            nn.Parameter(torch.randn(3, dtype=torch.float64, generator=generator)) for _ in range(3)
        )

    def share(self, image: Encoded, text: Encoded, extra: dict[str, Tensor], rows: slice) -> Terms:
        scores = (self.used * image.unit[rows]) @ text.pooled.T
        apart = image.rows(rows).unit @ image.unit.T + text.rows(rows).unit_within @ image.unit_within.T
        pooled = image.rows(rows).rows(slice(0, None)).pooled * text.rows(torch.arange(12)[rows]).pooled
        terms = {"scores": scores.exp().sum() + apart.exp().sum() + pooled.sum()}
        terms["extra"] = (extra["value"][rows] * image.pooled[rows]).sum()
        if rows.start == 5:
            terms["extra"] = terms["extra"] + self.seldom.sum()
        return terms


def encoded(seed: int, kind: torch.dtype = torch.float64) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn(12, 3, generator=generator).to(kind).requires_grad_()
    return Encoded(pooled, torch.empty(12, 0, 3), torch.empty(12, 0).bool())


def terms_and_trained(blocks: list[slice] | None) -> tuple[Terms, list[Tensor]]:
    """The loss terms, computed in blocks or at once, and the tensors that they depend on."""
    head, image, text = Head(), encoded(1), encoded(2)
    value = encoded(3).pooled
    extra = {"value": 2 * value, "constant": torch.ones(12)}
    if blocks is None:
        parts = [head.share(image, text, extra, rows) for rows in BLOCKS]
        terms = {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}
    else:
        terms = sum_of_blocks(head.share, blocks, image, text, extra, head)
    return terms, [image.pooled, text.pooled, value, head.used, head.seldom, head.unused]


def test_the_same_tensors_get_gradients_as_without_blocks():
    found = []
    for blocks in (None, BLOCKS):
        terms, trained = terms_and_trained(blocks)
        (3 * torch.stack(list(terms.values())).sum()).backward()
        found.append([*terms.values(), *(value.grad for value in trained)])
    for plain, ours in zip(*found, strict=True):
        assert (plain is None) == (ours is None)
        if plain is not None:
            torch.testing.assert_close(ours, plain)
    assert found[1][-1] is None, "DDP must see that nothing uses it"


def test_the_gradients_of_a_block_contain_only_its_rows():
    """Gradients as large as the batch, zero except for the block's rows, would dominate the cost of a small block."""
    sizes, before = [], []

    def share(image: Encoded, text: Encoded, extra: dict[str, Tensor], rows: slice) -> Terms:
        assert not [kept for kept in before[:-3] if kept() is not None], "nothing is left of a block after the next"
        some = image.rows(rows)
        for value in (some.pooled, some.unit, some.unit_within):
            assert value.is_leaf
            before.append(weakref.ref(value))
            value.register_hook(lambda gradient: sizes.append(len(gradient)))
        return {"sum": (some.pooled + some.unit * some.unit_within).sum()}

    sum_of_blocks(share, BLOCKS, encoded(1), encoded(2), {}, nn.Module())
    assert sizes == [5] * 3 + [5] * 3 + [2] * 3


def _targets_without_a_gradient(image: Encoded, text: Encoded, rows: slice) -> Tensor:
    with torch.no_grad():
        near, some = image.unit[rows] @ text.unit.T, text.rows(rows)
        mine = some.unit_within @ text.unit_within.T
    scores = image.rows(rows).unit @ text.unit.T + text.rows(rows).unit_within @ image.unit_within.T
    with torch.no_grad():
        after = text.unit, text.rows(rows).unit
    pooled = image.rows(rows).pooled * some.pooled * after[1] * some.unit + image.rows(rows).pooled * after[0].sum()
    return ((near + mine) * scores).sum() + pooled.sum()


def _other_embeddings_in_their_place(image: Encoded, text: Encoded, rows: slice) -> Tensor:
    copied, some = copy.copy(image), image.rows(rows)
    copied.pooled, some.pooled = 2 * image.pooled + 1, 3 * some.pooled - 1
    replaced = dataclasses.replace(text, pooled=text.pooled.exp())
    scores = some.unit @ copied.unit.T + replaced.rows(rows).unit @ text.unit.T
    return (scores + copied.rows(rows).unit_within @ image.unit_within.T).exp().sum()


def _rows_of_all_kinds(image: Encoded, text: Encoded, rows: slice) -> Tensor:
    behind = slice(rows.start - 12, (rows.stop - 12) or None)
    kinds = behind, slice(rows.start, rows.stop, 2), torch.arange(12)[rows].flip(0), slice(0, 0), slice(rows.start, 99)
    found = [image.rows(kind) for kind in (*kinds, rows, rows)]
    within = [some.rows(slice(1, None)).unit_within @ text.unit_within.T for some in found]
    return torch.cat([some.unit @ text.unit.T for some in found] + within).exp().sum()


def _recomputed(image: Encoded, text: Encoded, rows: slice) -> Tensor:
    def scores() -> Tensor:
        return (image.rows(rows).unit @ text.unit.T + text.rows(rows).unit_within @ image.unit_within.T).exp().sum()

    found: Tensor = checkpoint(scores, use_reentrant=False)
    return found


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    "way", [_targets_without_a_gradient, _other_embeddings_in_their_place, _rows_of_all_kinds, _recomputed]
)
def test_blocks_support_everything_that_methods_may_do(way, frozen):
    found = []
    for blocks in (None, BLOCKS):
        image, text = encoded(1), encoded(2)
        text.pooled.requires_grad_(not frozen)
        given = [Encoded(2 * side.pooled, side.tokens, side.mask) for side in (image, text)]
        if blocks is None:
            total = torch.stack([way(*given, rows) for rows in BLOCKS]).sum()
        else:
            total = sum_of_blocks(lambda i, t, _, rows: {"all": way(i, t, rows)}, blocks, *given, {}, nn.Module())[
                "all"
            ]
        total.backward()
        found.append([total, image.pooled.grad, text.pooled.grad])
    for plain, ours in zip(*found, strict=True):
        assert (plain is None) == (ours is None)
        if plain is not None:
            torch.testing.assert_close(ours, plain)


def test_the_gradient_of_one_of_several_terms_is_nan():
    terms, trained = terms_and_trained(BLOCKS)
    terms["extra"].backward()
    assert all(value.grad.isnan().all() for value in trained if value.grad is not None)


def test_each_block_is_computed_once():
    seen: list[slice] = []

    def share(image: Encoded, text: Encoded, extra: dict[str, Tensor], rows: slice) -> Terms:
        seen.append(rows)
        return {"drawn": (nn.functional.dropout(image.pooled[rows], 0.5) * text.pooled[rows]).sum()}

    torch.manual_seed(0)
    image, text = encoded(1), encoded(2)
    sum_of_blocks(share, BLOCKS, image, text, {}, nn.Module())["drawn"].backward()
    assert seen == BLOCKS
    assert image.pooled.grad is not None
    kept = image.pooled.grad != 0
    assert 0 < kept.sum() < kept.numel()
    torch.testing.assert_close(image.pooled.grad, torch.where(kept, 2 * text.pooled, 0))


def test_blocks_work_without_gradients():
    wanted, _ = terms_and_trained(None)
    with torch.no_grad():
        terms, _ = terms_and_trained(BLOCKS)
    assert not any(value.requires_grad for value in terms.values())
    for name, value in wanted.items():
        torch.testing.assert_close(terms[name], value)


@pytest.mark.parametrize("scaled", [False, True])
def test_float16_gradients_do_not_underflow_if_the_scale_is_known(scaled):
    """A gradient of 1e-9 per element is 0 in float16, but 6.6e-5 with the scaler's factor."""
    scale = torch.tensor(65536.0)

    def share(image: Encoded, text: Encoded, extra: dict[str, Tensor], rows: slice) -> Terms:
        return {"small": image.pooled[rows].float().sum() * 1e-9 + 0 * text.pooled.float().sum()}

    image = encoded(1, torch.float16)
    terms = sum_of_blocks(share, BLOCKS, image, encoded(2), {}, nn.Module(), scale if scaled else None)
    (scale * terms["small"]).backward()
    assert image.pooled.grad is not None
    wanted = 65536e-9 if scaled else 0.0
    torch.testing.assert_close(image.pooled.grad.float(), torch.full((12, 3), wanted), rtol=2e-2, atol=0)


def test_gradients_of_many_blocks_are_summed_in_float32():
    """In bfloat16 a sum of ones never exceeds 256."""
    image, text = encoded(1, torch.bfloat16), encoded(2)

    def share(image: Encoded, text: Encoded, extra: dict[str, Tensor], rows: slice) -> Terms:
        return {"sum": image.pooled.float().sum() + image.rows(rows).pooled.float().sum()}

    sum_of_blocks(share, 150 * [slice(0, 12)], image, text, {}, nn.Module())["sum"].backward()
    assert image.pooled.grad is not None
    assert (image.pooled.grad == 300).all()


def test_a_module_scales_blocks_by_its_trainers_scaler():
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    half = MixedPrecision("16-mixed", "cpu", scaler)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, plugins=half)
    found = []
    for chunk in (0, 5):
        module = make_module("info_nce", LargeBatch(loss_chunk=chunk)).float()
        assert loss_scale(module._trainer, module.device) is None
        module.trainer = trainer
        assert loss_scale(module._trainer, module.device) == 256
        with torch.autocast("cpu", torch.float16):
            terms = module.loss_terms(make_batch(slice(0, BATCH)), 0.0)
        scaler.scale(torch.stack(list(terms.values())).sum()).backward()
        found.append(torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]))
    assert found[0].norm() > 1
    assert (found[1] - found[0]).norm() < 0.02 * found[0].norm()
