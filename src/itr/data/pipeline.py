"""From tars to batches: read, shuffle as bytes, decode, tokenize, collate. Runs in the loader's workers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from itr.backbones.base import Tokenizer
from itr.data import plan
from itr.data.dense_texts import DenseTexts
from itr.data.fields import Field, dense_captions
from itr.data.images import BadImageError, decode, stack
from itr.data.items import read_items, shuffle
from itr.data.lengths import CutTexts
from itr.data.schema import Sample, Split, is_whole, stable_id
from itr.errors import UnreadableError, UserError
from itr.types import Batch

Captions = int | Literal["all"]
Texts = Literal["captions", "dense"]
MOST_WORKERS = 1024
log = logging.getLogger(__name__)


@dataclass
class Item:
    """A sample and those of its captions that one place in a batch uses."""

    sample: Sample
    captions: list[int]


@dataclass
class Reading:
    """How items are read.

    Attributes:
        split: the shards.
        captions: how many captions an image brings to a place in a batch; `all` makes each caption a place of its own
            in training.
        batch_items: places in a batch.
        seed: of order, captions and augmentation.
        shuffle_buffer: samples (as bytes) among which a worker shuffles; ignored in evaluation.
        max_pixels: a picture with more is not decoded.
        texts: which texts of a sample are its captions.
        dense: dense captions beside the shards.
        max_skipped: training samples without a picture or caption that can be used, in one epoch of a process.
        max_bad_shards: training shards that may be missing or damaged, in one epoch of a process.
    """

    split: Split
    captions: Captions
    batch_items: int
    seed: int
    shuffle_buffer: int
    max_pixels: int
    max_skipped: int
    max_bad_shards: int = 0
    texts: Texts = "captions"
    dense: DenseTexts | None = None


class ShardStream(IterableDataset[Batch | UserError]):
    """The batches of one process. A `UserError` is handed over as an item, so that the main process can raise it."""

    def __init__(
        self,
        reading: Reading,
        training: bool,
        transform: Callable[[Tensor], Tensor],
        tokenizer: Tokenizer,
        rank: int,
        world: int,
        fields: Sequence[Field] = (),
    ) -> None:
        self.fields, self.rank = list(fields), rank
        self.reading, self.training, self.transform, self.tokenizer = reading, training, transform, tokenizer
        self.pairs_each = training and reading.captions == "all"
        shards = reading.split.shards
        self.counts = [shard.captions if self.pairs_each else shard.images for shard in shards]
        self.total = sum(self.counts)
        share = plan.training_share if training else plan.evaluation_share
        self.share = share(self.total, reading.batch_items, rank, world)
        # Shared with workers, which may outlive an epoch: where training stands, what each worker skipped, and the
        # number (from 1) of the epoch in which each shard was last found bad.
        self._position = torch.zeros(2, dtype=torch.int64).share_memory_()
        self._skips = torch.zeros(MOST_WORKERS, dtype=torch.int64).share_memory_()
        self._bad_in = torch.zeros(len(shards), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return self.share.batches

    def begin(self, epoch: int, done: int) -> None:
        """Let the next iteration be of `epoch`, beginning after `done` batches."""
        self._position.copy_(torch.tensor([epoch, done]))
        self._skips.zero_()

    @property
    def epoch(self) -> int:
        """The epoch that is read."""
        return int(self._position[0])

    @property
    def skipped(self) -> int:
        """Samples that could not be used in this epoch, by any worker."""
        return int(self._skips.sum())

    @property
    def bad_shards(self) -> int:
        """Shards that were missing or damaged in this epoch, by any worker."""
        return int((self._bad_in == self.epoch + 1).sum())

    def __iter__(self) -> Iterator[Batch | UserError]:
        try:
            yield from self._batches()
        except UserError as error:
            yield error

    def _batches(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        start = int(self._position[1])
        mine = plan.worker_share(self.share.batches, worker, workers, start)
        everything = plan.worker_share(self.share.batches, (worker + start) % workers, workers)
        if everything.first == everything.last:
            return
        bounds = [self.share.bounds(b) for b in range(everything.first, everything.last)]
        items = self._items(bounds[0][0], bounds[-1][1], worker_key=bounds[0][0])
        for number, (first, last) in enumerate(bounds, start=everything.first):
            places = list(islice(items, last - first))
            if number >= mine.first:
                yield self._collate(places)

    def _items(self, start: int, stop: int, worker_key: int) -> Iterator[Item]:
        seed, epoch = self.reading.seed, self.epoch
        if not self.training:
            return self._read(list(range(len(self.counts))), start, stop)
        offset = plan.rotation(self.total, seed, epoch)
        order = plan.shard_order(len(self.counts), seed, epoch)
        items = self._read(order, start + offset, stop + offset)
        return shuffle(items, self.reading.shuffle_buffer, np.random.default_rng([seed, epoch, 2, worker_key]))

    def _read(self, order: list[int], start: int, stop: int) -> Iterator[Item]:
        def places(sample: Sample) -> list[Item]:
            return self._places(self._with_texts(sample))

        bad = self._bad_shard if self.training else None
        return read_items(self.reading.split.shards, self.counts, order, start, stop, places, bad)

    def _with_texts(self, sample: Sample) -> Sample:
        if self.reading.texts == "captions" or sample.fault:
            return sample
        texts = dense_captions(sample, self.reading.dense)
        ids = [stable_id(sample.image_id, "dense", i) for i in range(len(texts))]
        return replace(sample, captions=texts, caption_ids=ids)

    def _places(self, sample: Sample) -> list[Item]:
        count, wanted = len(sample.captions), self.reading.captions
        if not self.training:  # COCO's 5K test has images with six captions and more, of which the protocol takes five
            standard = sample.meta.get("standard")
            return [Item(sample, list(range(min(count, standard) if standard and is_whole(standard) else count)))]
        if wanted == "all":
            return [Item(sample, [i]) for i in range(count)]
        rng = np.random.default_rng([self.reading.seed, self.epoch, 3, sample.image_id])
        drawn = rng.permutation(count)[:wanted] if wanted <= count else rng.integers(count, size=wanted)
        return [Item(sample, [int(i) for i in drawn])]

    def _collate(self, places: list[Item]) -> Batch:
        decoded = self._pictures(places)
        good = [(place, picture) for place, picture in decoded if picture is not None]
        if not good:
            raise UserError(f"no picture of a whole batch can be used; the first is {places[0].sample.where}")
        # A picture that failed gives its place to a good one of the same batch: positions, and so a resumed run,
        # stay the same, and losses know the two rows for one image.
        whole = [(place, picture) if picture is not None else good[0] for place, picture in decoded]
        places = [place for place, _ in whole]
        rows = [(row, place, caption) for row, place in enumerate(places) for caption in place.captions]
        return Batch(
            image=stack([picture for _, picture in whole]),
            image_id=torch.tensor([place.sample.image_id for place in places]),
            text=self.tokenizer([place.sample.captions[caption] for _, place, caption in rows]),
            text_id=torch.tensor([place.sample.caption_ids[caption] for _, place, caption in rows]),
            image_index=torch.tensor([row for row, _, _ in rows]),
            image_extra={f.name: f.read([p.sample for p in places], []) for f in self.fields if f.of == "image"},
            text_extra={
                f.name: f.read([place.sample for _, place, _ in rows], [caption for _, _, caption in rows])
                for f in self.fields
                if f.of == "text"
            },
            keys=[place.sample.where for place in places],
        )

    def _pictures(self, places: list[Item]) -> list[tuple[Item, Tensor | None]]:
        state = torch.get_rng_state()
        try:
            return [(place, self._picture(place)) for place in places]
        finally:
            torch.set_rng_state(state)

    def _picture(self, place: Item) -> Tensor | None:
        sample = place.sample
        if sample.fault or not any(sample.captions):
            self._skip(sample.fault or f"{sample.where} has no caption")
            return None
        try:
            pixels = decode(sample.image, self.reading.max_pixels)
        except BadImageError as error:
            self._skip(f"image {sample.name} ({sample.where}) can't be decoded: {error}")
            return None
        if self.training:  # torch.manual_seed would do, at the price of half a decoding
            key = stable_id(self.reading.seed, self.epoch, sample.image_id, *place.captions)
            torch.default_generator.manual_seed(key)
        return self.transform(pixels)

    def _skip(self, named: str) -> None:
        if not self.training:
            raise UserError(f"{named}. A figure without it would be wrong; replace it or prepare the shards without it")
        info = get_worker_info()
        self._skips[info.id if info else 0] += 1  # a place for each worker: no two write to one
        skipped = self.skipped
        if skipped > self.reading.max_skipped:
            raise UserError(
                f"{named}. That makes {skipped} bad images, more than data.max_skipped = {self.reading.max_skipped}; "
                "mend the shards or raise the limit"
            )
        log.warning("skipped %s", named)

    def _bad_shard(self, shard: int, error: UnreadableError) -> None:
        known = bool(self._bad_in[shard])
        self._bad_in[shard] = self.epoch + 1
        limit = self.reading.max_bad_shards
        if self.bad_shards > limit:
            raise UserError(
                f"{error}. That makes {self.bad_shards} bad shard(s), more than data.max_bad_shards = {limit}; "
                "mend the shards or raise the limit"
            )
        if not known:
            log.warning("%s. What it lacks is taken from the shards that come next", error)


class ShardLoader(DataLoader[Batch]):
    """A loader that asks before each epoch where training stands, and raises the errors of its workers as they are.

    Args:
        stream: the batches.
        position: gives the epoch and the number of its batches that are already done.
        **options: of `torch.utils.data.DataLoader`.

    Attributes:
        waited: seconds that whoever asked has waited for batches so far.
    """

    def __init__(self, stream: ShardStream, position: Callable[[], tuple[int, int]], **options: Any) -> None:
        self.position = position
        self.waited = 0.0
        self.cut_texts = CutTexts(stream.tokenizer.max_length) if stream.training and stream.rank == 0 else None
        super().__init__(stream, batch_size=None, **options)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        stream: Any = self.dataset
        stream.begin(*self.position())
        batches = super().__iter__()
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                break
            if isinstance(batch, UserError):
                raise batch
            if self.cut_texts:
                self.cut_texts.look(batch)
            yield batch
        if self.cut_texts:
            self.cut_texts.tell()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: `position` tells all, but Lightning takes only a loader with this method for one that can resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing; see `state_dict`."""
