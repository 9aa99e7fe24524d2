"""What the text towers of SigLIP and SigLIP 2 need: their cleaning of captions, and padding that they read."""

from __future__ import annotations

import string
from typing import Any

from itr.backbones.tokenizers import BPETokenizer, HFTokenizer

GEMMA_VOCABULARY = 256_000  # of SigLIP 2, whose captions keep their punctuation


def reads_padding(text_config: Any) -> bool:
    """Whether a text tower was trained without a mask, on captions padded to one length, as SigLIP's."""
    return str(text_config.model_type) in ("siglip_text_model", "siglip2_text_model")


def as_siglip(tokenizer: HFTokenizer | BPETokenizer, vocabulary: int) -> HFTokenizer | BPETokenizer:
    """A tokenizer that pads every caption to its longest and cleans it in SigLIP's way.

    Args:
        tokenizer: the tokenizer of the tower's folder, or CLIP's.
        vocabulary: size of the text tower's vocabulary; SigLIP 2 is recognised by it.
    """
    if isinstance(tokenizer, BPETokenizer):
        return BPETokenizer(tokenizer.max_length, True, tokenizer.clean)
    return HFTokenizer(with_cleaning(tokenizer.to_json(), vocabulary), None, True, tokenizer.clean)


def with_cleaning(serialized: str, vocabulary: int) -> str:
    """A tokenizer with the cleaning of SigLIP's captions in front: lower case, and for SigLIP 1 no punctuation.

    The tokenizers of transformers do this in Python, or not at all, so a `tokenizer.json` may lack it; a second time it
    changes nothing.

    Args:
        serialized: the tokenizer.
        vocabulary: see `as_siglip`.
    """
    from tokenizers import Regex, Tokenizer, normalizers

    tokenizer = Tokenizer.from_str(serialized)
    steps: list[Any] = [normalizers.Lowercase()]
    if vocabulary < GEMMA_VOCABULARY:
        escaped = "".join(f"\\{character}" for character in string.punctuation)
        steps += [normalizers.Replace(Regex(f"[{escaped}]"), ""), normalizers.Replace(Regex(r"\s+"), " ")]
        steps += [normalizers.Strip()]
    if tokenizer.normalizer is not None:
        steps.append(tokenizer.normalizer)
    tokenizer.normalizer = normalizers.Sequence(steps)
    return str(tokenizer.to_str())
