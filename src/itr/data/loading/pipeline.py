"""From tars to batches: the samples of each process, their order, and the loader."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from itr.backbones.base import Side, Tokenizer
from itr.data.loading import plan
from itr.data.loading.batches import BatchMaker, Item
from itr.data.loading.fields import Field, KeptOutputs, dense_captions
from itr.data.loading.items import read_items, shuffle
from itr.data.loading.lengths import TruncationCounter
from itr.data.loading.reading import ReadOptions
from itr.data.loading.shared_epoch import SharedEpoch
from itr.data.loading.workers import hold_signals, ignore_signals
from itr.data.shards.schema import Sample, is_whole, stable_id
from itr.errors import UserError
from itr.private_api.torch import StartsWorkersWithin, end_workers
from itr.types import Batch


class ShardStream(IterableDataset[Batch | UserError]):
    """The batches of one process. A `UserError` is yielded instead of raised, so that the main process can raise it."""

    def __init__(
        self,
        reading: ReadOptions,
        training: bool,
        transform: Callable[[Any], Tensor],
        tokenizer: Tokenizer,
        rank: int,
        world: int,
        fields: Sequence[Field] = (),
        features: Field | None = None,
        outputs: Mapping[Side, KeptOutputs] | None = None,
    ) -> None:
        self.fields, self.rank = list(fields), rank
        self.reading, self.training, self.tokenizer = reading, training, tokenizer
        self.pairs_each = training and reading.captions == "all"
        shards = reading.split.shards
        self.counts = [shard.captions if self.pairs_each else shard.images for shard in shards]
        self.total = sum(self.counts)
        share = plan.training_share if training else plan.evaluation_share
        self.share = share(self.total, reading.batch_items, rank, world)
        self._shared = SharedEpoch(len(shards), reading.max_skipped, reading.max_bad_shards)
        kept = dict(outputs or {})
        self._maker = BatchMaker(reading, training, transform, tokenizer, self.fields, self._shared, features, kept)
        self._images = "image" not in kept or any(field.reads_images for field in self.fields)

    def __len__(self) -> int:
        return self.share.batches

    def begin(self, epoch: int, done: int) -> None:
        """Let the next iteration read `epoch`, starting after its first `done` batches."""
        self._shared.begin(epoch, done)

    @property
    def done(self) -> int:
        """Number of batches of this epoch that were already used before the run was resumed."""
        return self._shared.done

    @property
    def epoch(self) -> int:
        """The current epoch."""
        return self._shared.number

    @property
    def skipped(self) -> int:
        """Number of samples that all workers skipped in this epoch."""
        return self._shared.skipped

    @property
    def bad_shards(self) -> int:
        """Number of shards that any worker found missing or damaged in this epoch."""
        return self._shared.bad_shards

    def __iter__(self) -> Iterator[Batch | UserError]:
        try:
            yield from self._batches()
        except UserError as error:
            yield error

    def _batches(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        start = self._shared.done
        remaining = plan.worker_share(self.share.batches, worker, workers, start)
        whole_epoch = plan.worker_share(self.share.batches, (worker + start) % workers, workers)
        if whole_epoch.first == whole_epoch.last:
            return
        bounds = [self.share.bounds(b) for b in range(whole_epoch.first, whole_epoch.last)]
        items = self._items(bounds[0][0], bounds[-1][1], worker_key=bounds[0][0])
        for number, (first, last) in enumerate(bounds, start=whole_epoch.first):
            batch_items = list(islice(items, last - first))
            if number >= remaining.first:
                yield self._maker.batch(batch_items)

    def _items(self, start: int, stop: int, worker_key: int) -> Iterator[Item]:
        seed, epoch = self.reading.seed, self.epoch
        if not self.training:
            return self._read(list(range(len(self.counts))), start, stop)
        offset = plan.rotation(self.total, seed, epoch)
        order = plan.shard_order(len(self.counts), seed, epoch)
        items = self._read(order, start + offset, stop + offset)
        return shuffle(items, self.reading.shuffle_buffer, np.random.default_rng([seed, epoch, 2, worker_key]))

    def _read(self, order: list[int], start: int, stop: int) -> Iterator[Item]:
        def items_of(sample: Sample) -> list[Item]:
            return self._items_of_sample(self._with_texts(sample))

        bad = self._shared.bad_shard if self.training else None
        return read_items(self.reading.split.shards, self.counts, order, start, stop, items_of, bad, self._images)

    def _with_texts(self, sample: Sample) -> Sample:
        if self.reading.texts == "captions" or sample.fault:
            return sample
        texts = dense_captions(sample, self.reading.dense)
        ids = [stable_id(sample.image_id, "dense", i) for i in range(len(texts))]
        return replace(sample, captions=texts, caption_ids=ids)

    def _items_of_sample(self, sample: Sample) -> list[Item]:
        count, wanted = len(sample.captions), self.reading.captions
        if not self.training:  # some images of COCO 5K have more than five captions; the protocol uses the first five
            standard = sample.meta.get("standard")
            return [Item(sample, list(range(min(count, standard) if standard and is_whole(standard) else count)))]
        if wanted == "all":
            return [Item(sample, [i]) for i in range(count)]
        rng = np.random.default_rng([self.reading.seed, self.epoch, 3, sample.image_id])
        drawn = rng.permutation(count)[:wanted] if wanted <= count else rng.integers(count, size=wanted)
        return [Item(sample, [int(i) for i in drawn])]


class ShardLoader(StartsWorkersWithin, DataLoader[Batch]):
    """A loader that asks for the current position before each epoch, and raises its workers' errors unchanged.

    Args:
        stream: the batches.
        position: returns the epoch and the number of its batches that are already done.
        **options: options of `torch.utils.data.DataLoader`.

    Attributes:
        waited: total seconds that the consumer has waited for batches.
    """

    def __init__(self, stream: ShardStream, position: Callable[[], tuple[int, int]], **options: Any) -> None:
        self.position = position
        self.waited = 0.0
        counts = stream.training and stream.rank == 0
        self.truncation = TruncationCounter(stream.tokenizer.max_length) if counts else None
        super().__init__(stream, batch_size=None, worker_init_fn=ignore_signals, **options)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        stream: Any = self.dataset
        stream.begin(*self.position())
        left = max(0, len(stream) - stream.done)
        for batch in self._timed(super().__iter__()):
            if self.truncation:
                self.truncation.count(batch)
            left -= 1
            yield batch
        if left > 0:  # torch drops a batch that a worker could not send, and only the worker's own output says so
            raise UserError(
                f"{left} of {len(stream)} batches of this epoch did not arrive from the data workers, whose errors are "
                "above. With `Too many open files`, raise the limit by `ulimit -n 4096`; with `No space left on "
                "device`, make /dev/shm larger; in any case fewer data workers, or 0, need less"
            )
        if self.truncation:
            self.truncation.report()

    def _timed(self, batches: Iterator[Any]) -> Iterator[Batch]:
        """The batches; waiting for them is timed, and an error of a worker is raised once all workers have ended."""
        try:
            while (batch := self._next(batches)) is not None:
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        except Exception:
            end_workers(batches)
            raise

    def _next(self, batches: Iterator[Any]) -> Batch | UserError | None:
        begin = time.perf_counter()
        batch = next(batches, None)
        self.waited += time.perf_counter() - begin
        return batch

    def starting_workers(self) -> AbstractContextManager[None]:
        """Block signals: a worker must not inherit the handlers of this process."""
        return hold_signals()

    def state_dict(self) -> dict[str, Any]:
        """Empty: `position` is enough to resume, but Lightning requires this method of a resumable loader."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing; see `state_dict`."""
