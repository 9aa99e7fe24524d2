"""Count the texts that the tokenizer truncates, in the main process and from the batches."""

from __future__ import annotations

import logging

from itr.types import Batch, Tokens

COUNTED_BATCHES = 100
log = logging.getLogger(__name__)


class TruncationCounter:
    """Warns once about the share of texts in the first batches that reach the token limit and may be truncated.

    Args:
        limit: maximum number of tokens, including start and end tokens.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.batches = limit, 0
        self.seen: dict[str, int] = {}
        self.full: dict[str, int] = {}

    def count(self, batch: Batch) -> None:
        """Count the texts of a batch."""
        if self.batches >= COUNTED_BATCHES:
            return
        self.batches += 1
        texts = {"captions": batch.text, **batch.image_extra, **batch.text_extra}
        for name, tokens in texts.items():
            if isinstance(tokens, Tokens):
                full = int((tokens.mask.sum(dim=1) >= self.limit).sum())
                self.seen[name] = self.seen.get(name, 0) + len(tokens)
                self.full[name] = self.full.get(name, 0) + full
        if self.batches == COUNTED_BATCHES:
            self.report()

    def report(self) -> None:
        """Log the result and stop counting."""
        self.batches = COUNTED_BATCHES
        for name, full in self.full.items():
            if full:
                log.warning(
                    "%.3g%% of the first %d %s reach the limit of %d tokens; longer ones are truncated",
                    100 * full / self.seen[name], self.seen[name], name, self.limit,
                )  # fmt: skip
        self.full.clear()
