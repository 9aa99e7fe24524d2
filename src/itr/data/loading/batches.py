"""Make batches from items: decode and transform images, tokenize captions, and read the other fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from itr.backbones.base import IMAGE_OUTPUT, TEXT_OUTPUT, Side, Tokenizer
from itr.data.loading.fields import Field, KeptOutputs
from itr.data.loading.reading import ReadOptions
from itr.data.loading.shared_epoch import SharedEpoch
from itr.data.shards.schema import Sample, stable_id
from itr.errors import UserError
from itr.files.digests import content_mark
from itr.images.transforms import BadImageError, decode_for, stack_images
from itr.types import Batch, Extra, Tokens


@dataclass
class Item:
    """One item of a batch: a sample and the indices of the captions to use."""

    sample: Sample
    captions: list[int]


@dataclass
class BatchMaker:
    """Makes the batches of a stream.

    Attributes:
        reading: how samples are read.
        training: whether unusable samples may be skipped; in evaluation they are an error.
        transform: turns a decoded image into [3, size, size], uint8.
        tokenizer: tokenizer of the captions.
        fields: the other fields of a batch.
        epoch: counts the unusable samples.
        features: reads images for a backbone that takes features instead of pixels; then no image is decoded.
        outputs: what frozen towers returned, by side; then nothing is decoded or tokenized.
    """

    reading: ReadOptions
    training: bool
    transform: Callable[[Any], Tensor]
    tokenizer: Tokenizer
    fields: Sequence[Field]
    epoch: SharedEpoch
    features: Field | None = None
    outputs: Mapping[Side, KeptOutputs] = field(default_factory=dict)

    def batch(self, items: list[Item]) -> Batch:
        """Make a batch.

        Raises:
            UserError: no item is usable, or more items were skipped than the reading allows.
        """
        decoded = self._images(items)
        good = [(item, image) for item, image in decoded if image is not None]
        if not good:
            raise UserError(
                f"no image of a whole batch could be used; the first is {items[0].sample.where}. Check the shards"
            )
        # A good item of the same batch replaces an unusable one, so that all positions, and hence resumed runs, stay
        # the same. The losses know by the image's id that the two rows are one image.
        usable = [(item, image) if image is not None else good[0] for item, image in decoded]
        items = [item for item, _ in usable]
        rows = [(row, item, caption) for row, item in enumerate(items) for caption in item.captions]
        image, image_output = self._image_side(items, [image for _, image in usable])
        text, text_output = self._text_side(rows)
        return Batch(
            image=image,
            image_id=torch.tensor([item.sample.image_id for item in items]),
            text=text,
            text_id=torch.tensor([item.sample.caption_ids[caption] for _, item, caption in rows]),
            image_index=torch.tensor([row for row, _, _ in rows]),
            image_extra=image_output
            | {f.name: f.read([item.sample for item in items], []) for f in self.fields if f.of == "image"},
            text_extra=text_output
            | {
                f.name: f.read([item.sample for _, item, _ in rows], [caption for _, _, caption in rows])
                for f in self.fields
                if f.of == "text"
            },
            keys=[item.sample.where for item in items],
            content_id=torch.tensor(self._contents(items)) if self.training else None,
        )

    def _image_side(self, items: list[Item], images: list[Tensor]) -> tuple[Tensor, dict[str, Extra]]:
        """The images; or a hash of each beside what a frozen tower returned for it."""
        if "image" in self.outputs:
            output, hashes = self.outputs["image"].images([item.sample.image_id for item in items])
            return hashes, {IMAGE_OUTPUT: output}
        return self._features(items) if self.features else stack_images(images), {}

    def _text_side(self, rows: list[tuple[int, Item, int]]) -> tuple[Tokens, dict[str, Extra]]:
        """The tokenized captions; or a hash of each and its mask, beside what a frozen tower returned for it."""
        if "text" in self.outputs:
            ids = [item.sample.caption_ids[caption] for _, item, caption in rows]
            output, text = self.outputs["text"].texts(ids)
            return text, {TEXT_OUTPUT: output}
        return self.tokenizer([item.sample.captions[caption] for _, item, caption in rows]), {}

    def _contents(self, items: list[Item]) -> list[int]:
        if "image" in self.outputs:
            return self.outputs["image"].contents([item.sample.image_id for item in items])
        return [content_mark(item.sample.image) for item in items]

    def _images(self, items: list[Item]) -> list[tuple[Item, Tensor | None]]:
        state = torch.get_rng_state()
        try:
            return [(item, self._image(item)) for item in items]
        finally:
            torch.set_rng_state(state)

    def _features(self, items: list[Item]) -> Tensor:
        assert self.features is not None
        found = self.features.read([item.sample for item in items], [])
        assert isinstance(found, Tensor), f"the field {self.features.name} must be a tensor to be used as images"
        return found

    def _image(self, item: Item) -> Tensor | None:
        sample = item.sample
        if sample.fault or not any(sample.captions):
            self._skip(sample.fault or f"{sample.where} has no caption")
            return None
        if self.features is not None:
            return torch.empty(0)
        if "image" in self.outputs:
            if self.outputs["image"].missing(sample.image_id):
                self._skip(f"could not decode image {sample.name} ({sample.where}) when its tower ran")
                return None
            return torch.empty(0)
        try:
            pixels = decode_for(sample.image, self.reading.max_pixels, getattr(self.transform, "to_rgb", "white"))
        except BadImageError as error:
            self._skip(f"could not decode image {sample.name} ({sample.where}): {error}")
            return None
        if self.training:  # torch.manual_seed would also work, but takes half as long as decoding
            key = stable_id(self.reading.seed, self.epoch.number, sample.image_id, *item.captions)
            torch.default_generator.manual_seed(key)
        return self.transform(pixels)

    def _skip(self, reason: str) -> None:
        if not self.training:
            raise UserError(
                f"{reason}. Skipping it would change the metrics; replace it, or prepare the shards without it"
            )
        self.epoch.skip(reason)
