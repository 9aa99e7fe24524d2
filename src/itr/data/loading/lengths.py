"""How many texts are as long as the tokenizer lets any be: counted in the main process, from what batches hold."""

from __future__ import annotations

import logging

from itr.types import Batch, Tokens

LOOKED_AT = 100  # batches
log = logging.getLogger(__name__)


class CutTexts:
    """Says once which share of the texts of the first batches reaches the limit, beyond which they are cut off.

    Args:
        limit: tokens of the longest text, start and end included.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.batches = limit, 0
        self.seen: dict[str, int] = {}
        self.full: dict[str, int] = {}

    def look(self, batch: Batch) -> None:
        """Count the texts of a batch."""
        if self.batches >= LOOKED_AT:
            return
        self.batches += 1
        texts = {"captions": batch.text, **batch.image_extra, **batch.text_extra}
        for name, tokens in texts.items():
            if isinstance(tokens, Tokens):
                full = int((tokens.mask.sum(dim=1) >= self.limit).sum())
                self.seen[name] = self.seen.get(name, 0) + len(tokens)
                self.full[name] = self.full.get(name, 0) + full
        if self.batches == LOOKED_AT:
            self.tell()

    def tell(self) -> None:
        """Say what was counted; it is not counted again."""
        self.batches = LOOKED_AT
        for name, full in self.full.items():
            if full:
                log.warning(
                    "%.3g%% of the first %d %s reach the limit of %d tokens; what goes beyond it is cut off",
                    100 * full / self.seen[name], self.seen[name], name, self.limit,
                )  # fmt: skip
        self.full.clear()
