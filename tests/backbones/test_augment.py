"""Size augmentation against plain loops, and its statistics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from itr.backbones.augment import drop_tokens_at, drop_visual_tokens, edit_words, mask_words
from itr.backbones.tokenizers import BPETokenizer, HFTokenizer
from itr.types import Tokens


@pytest.fixture
def tokenizer(tokenizer_json: str) -> HFTokenizer:
    return HFTokenizer(tokenizer_json)


def captions(num: int, width: int) -> Tokens:
    """Random lengths, [CLS] first and [SEP] last."""
    lengths = torch.randint(3, width + 1, (num, 1))
    place = torch.arange(width)
    ids = torch.randint(5, 17, (num, width)).masked_fill(place >= lengths, 0).masked_fill(place == lengths - 1, 3)
    ids[:, 0] = 2
    return Tokens(ids=ids, mask=place < lengths)


def edit_by_loop(
    ids: list[int], mask: list[bool], rate: float, mask_id: int | None, draws: Tensor, new: Tensor
) -> list[int]:
    out, words_left = [], 0
    for id, real, draw, replacement in zip(ids, mask, draws.tolist(), new.tolist(), strict=True):
        if not real:
            continue
        if id < 5:
            out.append(id)
        elif draw >= rate:
            out.append(id)
            words_left += 1
        elif draw < 0.5 * rate and mask_id is not None:
            out.append(mask_id)
            words_left += 1
        elif 0.5 * rate <= draw < 0.6 * rate:
            out.append(replacement if replacement >= 5 else id)
            words_left += 1
    return out if words_left else []


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.9, 1.0])
@pytest.mark.parametrize("with_mask", [True, False])
def test_word_masking_equals_a_plain_loop(tokenizer: HFTokenizer, rate: float, with_mask: bool) -> None:
    torch.manual_seed(0)
    tokenizer.mask_id = 4 if with_mask else None
    tokens = captions(64, 9)
    draws, new = torch.rand(64, 9, dtype=torch.float64), torch.randint(17, (64, 9))

    edited = edit_words(tokens, rate, tokenizer, draws, new)

    for row in range(64):
        ids, mask = tokens.ids[row].tolist(), tokens.mask[row].tolist()
        expected = edit_by_loop(ids, mask, rate, tokenizer.mask_id, draws[row], new[row])
        kept = edited.ids[row][edited.mask[row]].tolist()
        assert kept == expected or (not expected and len(kept) == sum(mask))
        assert edited.mask[row].tolist() == [True] * len(kept) + [False] * (9 - len(kept))
        assert (edited.ids[row][len(kept) :] == 0).all()


def test_fractions_of_changed_words(tokenizer: HFTokenizer) -> None:
    torch.manual_seed(0)
    tokens = Tokens(ids=torch.full((2000, 50), 7), mask=torch.ones(2000, 50, dtype=torch.bool))

    edited = mask_words(tokens, 0.2, tokenizer)

    total = tokens.ids.numel()
    masked = int((edited.ids == 4).sum())
    replaced = int((edited.mask & (edited.ids != 4) & (edited.ids != 7)).sum())
    assert masked / total == pytest.approx(0.1, abs=0.005)
    assert replaced / total == pytest.approx(
        0.02 * 11 / 17, abs=0.003
    )  # six of the seventeen random tokens change nothing
    assert 1 - float(edited.mask.float().mean()) == pytest.approx(0.08, abs=0.005)


def test_start_and_end_are_kept_and_no_caption_becomes_empty() -> None:
    torch.manual_seed(0)
    tokenizer = BPETokenizer()
    tokens = tokenizer(["dog", "a dog on a mat", ""] * 200)

    edited = mask_words(tokens, 1.0, tokenizer)

    assert (edited.ids[:, 0] == tokenizer.start_id).all()
    last = edited.ids.gather(1, edited.mask.sum(1, keepdim=True) - 1)
    assert (last == tokenizer.end_id).all()
    assert (edited.mask.sum(1).view(-1, 3)[:, :2] >= 3).all()
    assert torch.equal(tokens.ids, tokenizer(["dog", "a dog on a mat", ""] * 200).ids)  # the input is unchanged


def test_dropping_visual_tokens_equals_a_plain_loop() -> None:
    torch.manual_seed(0)
    mask = torch.rand(50, 6) < 0.8
    mask[:, 0] = True
    strength, chance = torch.rand(50, 1), torch.rand(50, 6)

    thinned = drop_tokens_at(mask, 0.9, strength, chance)

    for row in range(50):
        u = float(strength[row])
        keep = [bool(mask[row, t]) and not (u > 0.2 and float(chance[row, t]) < 0.9 * u) for t in range(6)]
        assert thinned[row].tolist() == (keep if any(keep) else mask[row].tolist())


def test_fraction_of_dropped_visual_tokens() -> None:
    torch.manual_seed(0)
    features, mask = torch.randn(5000, 40, 1), torch.ones(5000, 40, dtype=torch.bool)

    kept = drop_visual_tokens(features, mask, 0.2).float().mean(dim=1)

    # The mean of 0.2 u over u in (0.2, 1), times 0.8, is 0.2 (1 - 0.04) / 2.
    assert 1 - float(kept.mean()) == pytest.approx(0.096, abs=0.003)
    assert float((kept == 1).float().mean()) > 0.2
    assert torch.equal(drop_visual_tokens(features, mask, 0.0), mask)


def test_no_image_loses_all_tokens() -> None:
    torch.manual_seed(0)
    kept = drop_visual_tokens(torch.randn(2000, 1, 1), torch.ones(2000, 1, dtype=torch.bool), 1.0)

    assert kept.all()
