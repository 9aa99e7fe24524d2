"""What becomes of a caption on its way into a shard.

White space, Windows line ends among it, is squeezed to single blanks. NUL and other control characters are removed.
Half a character outside the basic plane (a lone surrogate, which no UTF-8 can hold) becomes U+FFFD. All else stays:
emoji with their joiners, right-to-left text with its marks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

# Those that are white space are not here: they have become blanks.
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
SURROGATE = re.compile(r"[\ud800-\udfff]")


def join_surrogates(text: str) -> str:
    """Pairs of surrogates become the character they stand for, lone ones U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class CaptionCleaner:
    """Cleans captions and counts what it changed, for one notice a source."""

    def __init__(self) -> None:
        self.changes: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def clean(self, texts: Sequence[str], where: str) -> list[str]:
        """The texts by the rule of this module; those that are empty then are left out."""
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
                self._count("held broken Unicode, which became U+FFFD", where)
            text = joined
        return text

    def _count(self, change: str, where: str) -> None:
        self.changes[change] += 1
        self.examples.setdefault(change, where)

    def notices(self) -> list[str]:
        """A line for each kind of change."""
        return [f"{n} captions {what} (the first: {self.examples[what]})" for what, n in self.changes.items()]
