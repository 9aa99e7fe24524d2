"""What a training process and the workers of its loader know together of the epoch that is read."""

from __future__ import annotations

import logging

import torch
from torch.utils.data import get_worker_info

from itr.errors import UnreadableError, UserError

MOST_WORKERS = 1024
log = logging.getLogger(__name__)


class SharedEpoch:
    """Where an epoch begins, and what it did without, in memory shared with workers, which may outlive it.

    Args:
        shards: how many there are.
        max_skipped: samples that the epoch may do without.
        max_bad_shards: shards that may be missing or damaged.
    """

    def __init__(self, shards: int, max_skipped: int, max_bad_shards: int) -> None:
        self.max_skipped, self.max_bad_shards = max_skipped, max_bad_shards
        self._position = torch.zeros(2, dtype=torch.int64).share_memory_()
        self._skips = torch.zeros(MOST_WORKERS, dtype=torch.int64).share_memory_()  # of each worker
        self._bad_in = torch.zeros(shards, dtype=torch.int64).share_memory_()  # epoch, from 1, that last found it bad

    def begin(self, number: int, done: int) -> None:
        """Let this be epoch `number`, beginning after `done` batches."""
        self._position.copy_(torch.tensor([number, done]))
        self._skips.zero_()

    @property
    def number(self) -> int:
        """The epoch that is read."""
        return int(self._position[0])

    @property
    def done(self) -> int:
        """Its batches that were used before."""
        return int(self._position[1])

    @property
    def skipped(self) -> int:
        """Samples that could not be used in this epoch, by any worker."""
        return int(self._skips.sum())

    @property
    def bad_shards(self) -> int:
        """Shards that were missing or damaged in this epoch, by any worker."""
        return int((self._bad_in == self.number + 1).sum())

    def skip(self, named: str) -> None:
        """Count and tell a sample that can't be used, `named` with its reason.

        Raises:
            UserError: they are too many.
        """
        info = get_worker_info()
        self._skips[info.id if info else 0] += 1  # a place for each worker: no two write to one
        skipped = self.skipped
        if skipped > self.max_skipped:
            raise UserError(
                f"{named}. That makes {skipped} bad images, more than data.max_skipped = {self.max_skipped}; "
                "mend the shards or raise the limit"
            )
        log.warning("skipped %s", named)

    def bad_shard(self, shard: int, error: UnreadableError) -> None:
        """Count and tell a shard that can't be read, once in a run.

        Raises:
            UserError: they are too many.
        """
        known = bool(self._bad_in[shard])
        self._bad_in[shard] = self.number + 1
        limit = self.max_bad_shards
        if self.bad_shards > limit:
            raise UserError(
                f"{error}. That makes {self.bad_shards} bad shard(s), more than data.max_bad_shards = {limit}; "
                "mend the shards or raise the limit"
            )
        if not known:
            log.warning("%s. What it lacks is taken from the shards that come next", error)
