"""State of the current epoch, shared between a training process and its loader's workers."""

from __future__ import annotations

import logging

import torch
from torch.utils.data import get_worker_info

from itr.errors import UnreadableError, UserError

MOST_WORKERS = 1024
log = logging.getLogger(__name__)


class SharedEpoch:
    """Start of the epoch and counts of skipped samples and bad shards, in memory shared with persistent workers.

    Args:
        shards: number of shards.
        max_skipped: limit on skipped samples.
        max_bad_shards: limit on missing or damaged shards.
    """

    def __init__(self, shards: int, max_skipped: int, max_bad_shards: int) -> None:
        self.max_skipped, self.max_bad_shards = max_skipped, max_bad_shards
        self._position = torch.zeros(2, dtype=torch.int64).share_memory_()
        self._skips = torch.zeros(MOST_WORKERS, dtype=torch.int64).share_memory_()  # per worker
        self._bad_in = torch.zeros(shards, dtype=torch.int64).share_memory_()  # last epoch, from 1, that found it bad

    def begin(self, number: int, done: int) -> None:
        """Start epoch `number` after its first `done` batches."""
        self._position.copy_(torch.tensor([number, done]))
        self._skips.zero_()

    @property
    def number(self) -> int:
        """The current epoch."""
        return int(self._position[0])

    @property
    def done(self) -> int:
        """Number of batches of this epoch that were already used before the run was resumed."""
        return int(self._position[1])

    @property
    def skipped(self) -> int:
        """Number of samples that all workers skipped in this epoch."""
        return int(self._skips.sum())

    @property
    def bad_shards(self) -> int:
        """Number of shards that any worker found missing or damaged in this epoch."""
        return int((self._bad_in == self.number + 1).sum())

    def skip(self, reason: str) -> None:
        """Count and report an unusable sample; `reason` includes its name.

        Raises:
            UserError: the limit is exceeded.
        """
        info = get_worker_info()
        self._skips[info.id if info else 0] += 1  # one entry per worker, so no two workers write to the same entry
        skipped = self.skipped
        if skipped > self.max_skipped:
            raise UserError(
                f"{reason}. That makes {skipped} bad images, more than data.max_skipped = {self.max_skipped}; "
                "repair the shards or raise the limit"
            )
        log.warning("skipped an image: %s", reason)

    def bad_shard(self, shard: int, error: UnreadableError) -> None:
        """Count an unreadable shard, and report it once per run.

        Raises:
            UserError: the limit is exceeded.
        """
        known = bool(self._bad_in[shard])
        self._bad_in[shard] = self.number + 1
        limit = self.max_bad_shards
        if self.bad_shards > limit:
            raise UserError(
                f"{error}. That makes {self.bad_shards} bad shard(s), more than data.max_bad_shards = {limit}; "
                "repair the shards or raise the limit"
            )
        if not known:
            log.warning("%s. Samples of the following shards replace the missing ones", error)
