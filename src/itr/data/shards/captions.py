"""How captions are cleaned before they are written to a shard.

Each run of white space, Windows line ends included, becomes one space. NUL and other control characters are removed.
A lone surrogate, which UTF-8 cannot encode, becomes U+FFFD. Everything else is kept: emoji with their joiners,
right-to-left text with its marks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

# Control characters that are white space are missing here: they have already become spaces.
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
SURROGATE = re.compile(r"[\ud800-\udfff]")


def join_surrogates(text: str) -> str:
    """Replace each pair of surrogates by the character it encodes, and each lone one by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class CaptionCleaner:
    """Cleans captions and counts its changes, for one notice per source."""

    def __init__(self) -> None:
        self.changes: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def clean(self, texts: Sequence[str], where: str) -> list[str]:
        """The captions cleaned as this module describes, without those that are then empty."""
        cleaned = (self._one(text, where) for text in texts)
        return [text for text in cleaned if text]

    def _one(self, text: str, where: str) -> str:
        text = " ".join(text.split())
        if text.isprintable():
            return text
        if CONTROL.search(text):
            self._count("held control characters such as NUL, which are removed", where)
            text = " ".join(CONTROL.sub("", text).split())
        if SURROGATE.search(text):
            joined = join_surrogates(text)
            if "\ufffd" in joined:
                self._count("held invalid Unicode, which became U+FFFD", where)
            text = joined
        return text

    def _count(self, change: str, where: str) -> None:
        self.changes[change] += 1
        self.examples.setdefault(change, where)

    def notices(self) -> list[str]:
        """One line for each kind of change."""
        return [f"{n} captions {what} (the first: {self.examples[what]})" for what, n in self.changes.items()]
