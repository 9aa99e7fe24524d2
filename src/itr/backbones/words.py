"""Tokenize captions word by word with a cache: most words of a new caption have been seen before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_CACHED_WORDS = 2**16  # about 20 MB
MAX_CACHED_LENGTH = 32  # characters of a cached word


class Words:
    """Ids of texts, for a tokenizer whose tokens never span a space, with a cache of the ids of recent words.

    The cache is bounded, since web texts never run out of new words.

    Args:
        encode: returns the ids of one word.
    """

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        self.encode = encode
        self.known: dict[str, list[int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "known": {}}

    def __call__(self, text: str) -> list[int]:
        """The ids of a text."""
        found: list[int] = []
        for word in text.split():
            ids = self.known.get(word)
            found += self._encoded(word) if ids is None else ids
        return found

    def _encoded(self, word: str) -> list[int]:
        ids = self.encode(word)
        if len(word) <= MAX_CACHED_LENGTH:
            if len(self.known) >= MAX_CACHED_WORDS:
                self.known.clear()
            self.known[word] = ids
        return ids


def clip_words() -> Words:
    """The vocabulary of CLIP, which is included in open_clip, for cleaned texts."""
    from open_clip.tokenizer import SimpleTokenizer

    encoder: Any = SimpleTokenizer()
    encoder.clean_fn = str
    special = dict(encoder.cache)

    def encode(word: str) -> list[int]:
        encoder.cache = dict(special)  # its own cache is unbounded
        return list(encoder.encode(word))

    return Words(encode)


def special_frame(fast: Any) -> tuple[list[int], list[int]] | None:
    """The ids that a BERT-style tokenizer adds before and after a text; None for other tokenizers.

    Args:
        fast: a `tokenizers.Tokenizer` without truncation and padding.
    """
    kinds = [type(part).__name__ for part in (fast.normalizer, fast.pre_tokenizer, fast.model)]
    added = fast.get_added_tokens_decoder().values()
    if kinds != ["BertNormalizer", "BertPreTokenizer", "WordPiece"] or any(" " in token.content for token in added):
        return None
    body, whole = fast.encode("a", add_special_tokens=False).ids, fast.encode("a").ids
    places = [at for at in range(len(whole)) if body and whole[at : at + len(body)] == body]
    return (whole[: places[0]], whole[places[0] + len(body) :]) if places else None


def is_plain(text: str) -> bool:
    """Whether a text is printable ASCII, so that only spaces separate words."""
    return text.isascii() and text.isprintable()


def pad_rows(rows: Sequence[list[int]], fill: int, width: int = 0) -> tuple[Tensor, Tensor]:
    """Ids [N, L], int64, and their mask [N, L], bool, False at padding; L is the longest row, at least `width`."""
    lengths = [len(row) for row in rows]
    mask = np.arange(max([width, 1, *lengths])) < np.array(lengths, dtype=np.int64)[:, None]
    ids = np.full(mask.shape, fill, dtype=np.int64)
    ids[mask] = list(chain.from_iterable(rows))
    return torch.from_numpy(ids), torch.from_numpy(mask)
