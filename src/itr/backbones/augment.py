"""Size augmentation: drop patches and words during training.

Chen et al., CVPR 2021, https://arxiv.org/abs/2011.04305, section 5. Both functions process the whole batch on its
device, without loops or synchronization.
"""

from __future__ import annotations

import torch
from torch import Tensor

from itr.backbones.base import Tokenizer
from itr.types import Tokens

_UNTOUCHED_IMAGES = 0.2  # fraction of the images that keep all tokens, whatever the rate, as in the authors' code
_MASK, _RANDOM = 0.5, 0.1  # fractions of the selected words; the rest are dropped


def drop_visual_tokens(features: Tensor, mask: Tensor, rate: float) -> Tensor:
    """Drop visual tokens from the mask.

    Each image draws u ~ U(0, 1). If u > 0.2, each of its tokens is dropped with probability rate * u; the other images
    keep all tokens, and so does an image that would lose all of them.

    Args:
        features: tokens [N, T, D]; only the device and shape are used.
        mask: True at a token [N, T], bool.
        rate: maximum fraction to drop, in [0, 1].

    Returns:
        The new mask [N, T], bool.
    """
    strength = torch.rand(len(features), 1, device=features.device)
    chance = torch.rand(features.shape[:2], device=features.device)
    return drop_tokens_at(mask, rate, strength, chance)


def drop_tokens_at(mask: Tensor, rate: float, strength: Tensor, chance: Tensor) -> Tensor:
    """`drop_visual_tokens` for given draws: u [N, 1], and one per token [N, T]."""
    dropped = (strength > _UNTOUCHED_IMAGES) & (chance < rate * strength)
    kept = mask & ~dropped
    return torch.where(kept.any(dim=1, keepdim=True), kept, mask)


def mask_words(tokens: Tokens, rate: float, tokenizer: Tokenizer) -> Tokens:
    """Change a fraction of the words: half become the mask token, a tenth a random token, the rest are dropped.

    Special tokens and padding never change. Dropped words leave no gap: the caption is shifted left. A caption that
    would lose all its words keeps them. If the tokenizer has no mask token, words are dropped instead of masked; if a
    random token is special, the word stays unchanged.

    NOTE: the authors decide once for all pieces of a word; here each piece counts as a word, since we only have ids.

    Args:
        tokens: captions [C, L].
        rate: fraction of the words to change, in [0, 1].
        tokenizer: the captions' tokenizer; its special ids, mask id, pad id and vocabulary size are used.

    Returns:
        New captions [C, L] of the same width.
    """
    chance = torch.rand(tokens.ids.shape, device=tokens.ids.device)
    random_ids = torch.randint(tokenizer.vocab_size, tokens.ids.shape, device=tokens.ids.device)
    return edit_words(tokens, rate, tokenizer, chance, random_ids)


def edit_words(tokens: Tokens, rate: float, tokenizer: Tokenizer, chance: Tensor, random_ids: Tensor) -> Tokens:
    """`mask_words` for given draws: one in [0, 1) and one random id per word [C, L]."""
    special = _is_special(tokens.ids, tokenizer)
    word = tokens.mask & ~special
    as_mask = word & (chance < rate * _MASK)
    as_random = word & (chance >= rate * _MASK) & (chance < rate * (_MASK + _RANDOM))
    dropped = word & (chance >= rate * (_MASK + _RANDOM)) & (chance < rate)
    ids = torch.where(as_random & ~_is_special(random_ids, tokenizer), random_ids, tokens.ids)
    if tokenizer.mask_id is None:
        dropped |= as_mask
    else:
        ids = ids.masked_fill(as_mask, tokenizer.mask_id)
    dropped &= (word & ~dropped).any(dim=1, keepdim=True)
    return _compact(ids, tokens.mask & ~dropped, tokenizer.pad_id)


def _is_special(ids: Tensor, tokenizer: Tokenizer) -> Tensor:
    special = torch.zeros_like(ids, dtype=torch.bool)
    for special_id in tokenizer.special_ids:  # a few scalars: unlike torch.isin, this copies nothing to the device
        special |= ids == special_id
    return special


def _compact(ids: Tensor, keep: Tensor, pad_id: int) -> Tokens:
    """Shift the kept tokens left, in order, and pad the rest."""
    order = keep.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    mask = keep.gather(1, order)
    return Tokens(ids=ids.gather(1, order).masked_fill(~mask, pad_id), mask=mask)
