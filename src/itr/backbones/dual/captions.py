"""How captions reach the text towers of dual encoders: cleaning, length and the end token, as in pre-training."""

from __future__ import annotations

from typing import Any

from itr.backbones.dual.families import Family
from itr.backbones.tokenizers import BPETokenizer, Clean, HFTokenizer, load_tokenizer
from itr.backbones.towers import caption_limit
from itr.backbones.towers.preparing import check_vocabulary
from itr.backbones.towers.siglip_text import with_cleaning
from itr.errors import UserError


def caption_tokenizer(
    name: str | None, serialized: str | None, family: Family, text_config: Any, clean: Clean | None
) -> HFTokenizer | BPETokenizer:
    """The tokenizer of a dual encoder; CLIP's if there is neither a name nor a string.

    Args:
        name: folder, tokenizer.json or name on the hub.
        serialized: the JSON string of a checkpoint, which already cleans captions as the family needs.
        family: the family.
        text_config: the text tower's config.
        clean: how to clean captions before (see `itr.backbones.tokenizers.clean_function`).

    Raises:
        UserError: it could not be loaded, or doesn't belong to the text tower.
    """
    full_length = not family.masked
    if serialized is None and name is None:
        return _checked(BPETokenizer(family.context, full_length, clean or "lower"), family, text_config)
    if serialized is None:
        assert name is not None
        serialized = load_tokenizer(name).to_json()
        if not family.masked:
            serialized = with_cleaning(serialized, text_config.vocab_size)
    tokenizer = HFTokenizer(serialized, None, full_length, clean)
    return _checked(tokenizer, family, text_config)


def dual_caption_limit(tower: Any, tokenizer: HFTokenizer | BPETokenizer, family: Family, asked: int | None) -> int:
    """Longest caption in tokens: the family's, as far as tokenizer and tower allow it, or the length asked for.

    Raises:
        UserError: see `caption_limit`.
    """
    return caption_limit(getattr(tower, "roberta", tower), min(family.context, tokenizer.max_length), asked)


def _checked(tokenizer: HFTokenizer | BPETokenizer, family: Family, text_config: Any) -> HFTokenizer | BPETokenizer:
    check_vocabulary(tokenizer.vocab_size, text_config, "the model")
    if family.pools_at_end:
        ids, end = tokenizer(["a"]).ids[0].tolist(), text_config.eos_token_id
        # In configs of CLIP before 2023 the id is 2, and transformers then pools at the largest id.
        found = ids[-1] == max(ids) if family.model == "CLIPModel" and end == 2 else end in ids
        if not found:
            raise UserError(
                f"the text tower embeds a caption at the end token {end}, which the tokenizer doesn't write: use the "
                "tokenizer that belongs to the model, or set eos_token_id of text_config"
            )
    return tokenizer
