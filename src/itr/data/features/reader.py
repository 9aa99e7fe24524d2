"""Reading the images or texts of shards once, in fixed chunks, for a teacher to encode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from itr.data.loading import plan
from itr.data.loading.dense_texts import DenseTexts
from itr.data.loading.fields import dense_captions
from itr.data.loading.items import read_items
from itr.data.shards.schema import Sample, Split
from itr.errors import UserError
from itr.files.digests import content_mark
from itr.images.transforms import BadImageError, EvaluationTransform, read_view
from itr.teachers.base import ImageTransform, Modality
from itr.types import Tokens


@dataclass
class Chunk:
    """The items that the teacher encodes in one batch.

    Attributes:
        number: its number within the split.
        ids: image_id or caption_id of each row [n].
        inputs: images [n, 3, H, H], uint8, or texts [n], tokenized where the teacher's tokenizer is known.
        marks: a hash of the image file or text of each row [n].
        bad: rows whose image could not be decoded.
        messages: a message for each of them.
    """

    number: int
    ids: list[int]
    inputs: Any
    marks: list[int]
    bad: list[int] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def pin_memory(self) -> Chunk:
        """The same chunk in page-locked memory, for asynchronous copies to a GPU."""
        return self if isinstance(self.inputs, list) else replace(self, inputs=self.inputs.pin_memory())


class ChunkReader(IterableDataset[Chunk | UserError]):
    """Reads chunks of shards in order; each worker reads a contiguous range of them.

    Args:
        split: the shards.
        modality: whether items are images, captions, or the dense caption of each image.
        size: items per chunk.
        todo: numbers of the chunks to read, ascending.
        transform: preprocessing of an image; None for texts.
        max_pixels: images with more pixels are not decoded.
        texts: dense captions beside the shards.
        tokenizer: of texts; None to return them unchanged.
    """

    def __init__(
        self,
        split: Split,
        modality: Modality,
        size: int,
        todo: list[int],
        transform: ImageTransform | EvaluationTransform | None,
        max_pixels: int,
        texts: DenseTexts | None = None,
        tokenizer: Callable[[Sequence[str]], Tokens] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.split, self.modality, self.size, self.todo = split, modality, size, todo
        self.transform, self.max_pixels, self.texts = transform, max_pixels, texts
        self.counts = [shard.captions if modality == "text" else shard.images for shard in split.shards]

    def num_items(self, number: int) -> int:
        """Number of items of a chunk; the last one may be shorter."""
        return min(self.size, sum(self.counts) - number * self.size)

    def __iter__(self) -> Iterator[Chunk | UserError]:
        info = get_worker_info()
        mine = plan.worker_share(len(self.todo), info.id if info else 0, info.num_workers if info else 1)
        try:
            for first, last in consecutive_ranges(self.todo[mine.first : mine.last]):
                items = self._items(first * self.size, min(last * self.size, sum(self.counts)))
                for number in range(first, last):
                    yield self._chunk(number, list(islice(items, self.size)))
        except UserError as error:
            yield error

    def _items(self, start: int, stop: int) -> Iterator[tuple[Sample, int]]:
        shards = self.split.shards

        def places(sample: Sample) -> list[tuple[Sample, int]]:
            return [(sample, place) for place in range(len(sample.captions) if self.modality == "text" else 1)]

        return read_items(shards, self.counts, list(range(len(shards))), start, stop, places)

    def _chunk(self, number: int, items: list[tuple[Sample, int]]) -> Chunk:
        if self.modality == "text":
            ids = [sample.caption_ids[place] for sample, place in items]
            return self._texts(number, ids, [sample.captions[place] for sample, place in items])
        image_ids = [sample.image_id for sample, _ in items]
        if self.transform is None:
            return self._texts(number, image_ids, [dense_captions(sample, self.texts)[0] for sample, _ in items])
        images, bad, messages = [], [], []
        for row, (sample, _) in enumerate(items):
            try:
                images.append(read_view(sample.image, self.max_pixels, self.transform))
            except BadImageError as error:
                images.append(torch.zeros(3, self.transform.size, self.transform.size, dtype=torch.uint8))
                bad.append(row)
                messages.append(f"image {sample.name} ({sample.where}) could not be decoded: {error}")
        marks = [content_mark(sample.image) for sample, _ in items]
        return Chunk(number, image_ids, torch.stack(images), marks, bad, messages)

    def _texts(self, number: int, ids: list[int], texts: list[str]) -> Chunk:
        return Chunk(
            number, ids, self._tokenized(texts), [content_mark(text.encode("utf-8", "replace")) for text in texts]
        )

    def _tokenized(self, texts: list[str]) -> Tokens | list[str]:
        return texts if self.tokenizer is None else self.tokenizer(texts)


def load_chunks(reader: ChunkReader, num_workers: int, max_skipped: int) -> Iterator[Chunk]:
    """The chunks of a reader, read by worker processes; reports each skipped image.

    Raises:
        UserError: a shard is faulty, or more than `max_skipped` images could not be decoded.
    """
    skipped, workers = 0, min(num_workers, len(reader.todo))
    pinned, generator = torch.cuda.is_available(), torch.Generator()  # separate from the random state of a run
    loader: DataLoader[Any] = DataLoader(
        reader, batch_size=None, num_workers=workers, pin_memory=pinned, generator=generator
    )  # type: ignore[arg-type]
    for chunk in loader:
        if isinstance(chunk, UserError):
            raise chunk
        for message in chunk.messages:
            skipped += 1
            if skipped > max_skipped:
                raise UserError(f"{message}. Images skipped: {skipped}; repair the shards or increase --max_skipped")
            tqdm.write(f"skipped {message}")
        yield chunk


def consecutive_ranges(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """The ranges [first, last) of consecutive numbers."""
    start = 0
    for at in range(1, len(numbers) + 1):
        if at == len(numbers) or numbers[at] != numbers[at - 1] + 1:
            yield numbers[start], numbers[at - 1] + 1
            start = at
