"""Ids of captions word by word: a caption's words were met before, most of them, though the caption was not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_KNOWN = 2**16  # words that a tokenizer remembers: some 20 MB
LONGEST_KNOWN = 32  # characters of such a word


class Words:
    """The ids of texts by a tokenizer none of whose tokens reaches over a blank, remembering those of its last words.

    What it remembers is bounded, since texts of the web never run out of new words.

    Args:
        encode: the ids of one word.
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
        if len(word) <= LONGEST_KNOWN:
            if len(self.known) >= MOST_KNOWN:
                self.known.clear()
            self.known[word] = ids
        return ids


def clip_words() -> Words:
    """The vocabulary of CLIP, which ships inside open_clip, for texts that are cleaned already."""
    from open_clip.tokenizer import SimpleTokenizer

    encoder: Any = SimpleTokenizer()
    encoder.clean_fn = str
    special = dict(encoder.cache)

    def encode(word: str) -> list[int]:
        encoder.cache = dict(special)  # it remembers words, too, without a bound
        return list(encoder.encode(word))

    return Words(encode)


def frame(fast: Any) -> tuple[list[int], list[int]] | None:
    """What a tokenizer of BERT's kind puts before and after the words of a text; None of another kind.

    Args:
        fast: a `tokenizers.Tokenizer` that neither truncates nor pads.
    """
    kinds = [type(part).__name__ for part in (fast.normalizer, fast.pre_tokenizer, fast.model)]
    added = fast.get_added_tokens_decoder().values()
    if kinds != ["BertNormalizer", "BertPreTokenizer", "WordPiece"] or any(" " in token.content for token in added):
        return None
    body, whole = fast.encode("a", add_special_tokens=False).ids, fast.encode("a").ids
    places = [at for at in range(len(whole)) if body and whole[at : at + len(body)] == body]
    return (whole[: places[0]], whole[places[0] + len(body) :]) if places else None


def is_plain(text: str) -> bool:
    """Whether it is of printable ASCII alone, so that nothing in it but blanks parts words."""
    return text.isascii() and text.isprintable()


def padded(rows: Sequence[list[int]], fill: int, width: int = 0) -> tuple[Tensor, Tensor]:
    """Ids [N, L], int64, and where they are no padding [N, L], bool; L is the longest row's length, or `width`."""
    lengths = [len(row) for row in rows]
    mask = np.arange(max([width, 1, *lengths])) < np.array(lengths, dtype=np.int64)[:, None]
    ids = np.full(mask.shape, fill, dtype=np.int64)
    ids[mask] = list(chain.from_iterable(rows))
    return torch.from_numpy(ids), torch.from_numpy(mask)
