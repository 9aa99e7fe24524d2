"""Size augmentation: fewer patches and fewer words while training.

Chen et al., CVPR 2021, https://arxiv.org/abs/2011.04305, section 5. Both functions work on the whole batch on its
device, without a loop and without waiting for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from itr.backbones.base import Tokenizer
from itr.types import Tokens

_UNTOUCHED_IMAGES = 0.2  # share of the images that keep all tokens, whatever the rate, as in the authors' code
_MASK, _RANDOM = 0.5, 0.1  # what happens to a touched word; the rest is dropped


def drop_visual_tokens(features: Tensor, mask: Tensor, rate: float) -> Tensor:
    """Take visual tokens away from the mask.

    Each image draws u ~ U(0, 1). Where u > 0.2, each of its tokens goes with probability rate * u; the other images
    keep all, and so does an image that would lose everything.

    Args:
        features: tokens [N, T, D]; only their device matters.
        mask: True at a token [N, T], bool.
        rate: the highest share to drop, in [0, 1].

    Returns:
        The new mask [N, T], bool.
    """
    strength = torch.rand(len(features), 1, device=features.device)
    chance = torch.rand(features.shape[:2], device=features.device)
    return thin(mask, rate, strength, chance)


def thin(mask: Tensor, rate: float, strength: Tensor, chance: Tensor) -> Tensor:
    """The rule of `drop_visual_tokens` for given draws u [N, 1] and one a token [N, T]."""
    dropped = (strength > _UNTOUCHED_IMAGES) & (chance < rate * strength)
    kept = mask & ~dropped
    return torch.where(kept.any(dim=1, keepdim=True), kept, mask)


def mask_words(tokens: Tokens, rate: float, tokenizer: Tokenizer) -> Tokens:
    """Touch a share of the words: half become the mask token, a tenth a random token, the rest are dropped.

    Special tokens and padding are never touched. Dropped words leave no gap: the caption moves to the left. A caption
    that would lose all its words keeps them. A tokenizer without a mask token has them dropped instead, and a special
    token that comes up as the random one leaves the word as it is.

    NOTE: the authors decide once for all pieces of a word; here each piece is a word, since the pieces arrive as ids.

    Args:
        tokens: captions [C, L].
        rate: share of the words to touch, in [0, 1].
        tokenizer: where the captions come from; its special ids, mask id, pad id and vocabulary size are used.

    Returns:
        New captions [C, L]; the width is kept.
    """
    chance = torch.rand(tokens.ids.shape, device=tokens.ids.device)
    random_ids = torch.randint(tokenizer.vocab_size, tokens.ids.shape, device=tokens.ids.device)
    return edit_words(tokens, rate, tokenizer, chance, random_ids)


def edit_words(tokens: Tokens, rate: float, tokenizer: Tokenizer, chance: Tensor, random_ids: Tensor) -> Tokens:
    """The rule of `mask_words` for given draws in [0, 1) and in the vocabulary, one of each a word [C, L]."""
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
    for special_id in tokenizer.special_ids:  # a handful of scalars: no copy to the device, unlike torch.isin
        special |= ids == special_id
    return special


def _compact(ids: Tensor, keep: Tensor, pad_id: int) -> Tokens:
    """Move what is kept to the left, in its order, and pad the rest."""
    order = keep.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    mask = keep.gather(1, order)
    return Tokens(ids=ids.gather(1, order).masked_fill(~mask, pad_id), mask=mask)
