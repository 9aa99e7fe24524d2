"""Places to batches: images decoded and transformed, captions tokenized, and the further fields read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from itr.backbones.base import Tokenizer
from itr.data.loading.fields import Field
from itr.data.loading.reading import Reading
from itr.data.loading.shared_epoch import SharedEpoch
from itr.data.shards.schema import Sample, stable_id
from itr.errors import UserError
from itr.images.transforms import BadImageError, decode, stack_images
from itr.types import Batch


@dataclass
class Item:
    """A sample and those of its captions that one place in a batch uses."""

    sample: Sample
    captions: list[int]


@dataclass
class BatchMaker:
    """Makes the batches of a stream.

    Attributes:
        reading: how samples are read.
        training: in evaluation a sample that can't be used is refused.
        transform: decoded image [3, H, W] to [3, size, size], uint8.
        tokenizer: of the captions.
        fields: what else a batch brings.
        epoch: counts the samples that can't be used.
        features: gives the images where the backbone takes features instead of pixels; then none is decoded.
    """

    reading: Reading
    training: bool
    transform: Callable[[Tensor], Tensor]
    tokenizer: Tokenizer
    fields: Sequence[Field]
    epoch: SharedEpoch
    features: Field | None = None

    def batch(self, places: list[Item]) -> Batch:
        """The batch of some places.

        Raises:
            UserError: none of them can be used, or more than the reading allows can't.
        """
        decoded = self._images(places)
        good = [(place, image) for place, image in decoded if image is not None]
        if not good:
            raise UserError(f"no image of a whole batch can be used; the first is {places[0].sample.where}")
        # An image that failed gives its place to a good one of the same batch: positions, and so a resumed run,
        # stay the same, and losses know the two rows for one image.
        whole = [(place, image) if image is not None else good[0] for place, image in decoded]
        places = [place for place, _ in whole]
        rows = [(row, place, caption) for row, place in enumerate(places) for caption in place.captions]
        return Batch(
            image=self._features(places) if self.features else stack_images([image for _, image in whole]),
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

    def _images(self, places: list[Item]) -> list[tuple[Item, Tensor | None]]:
        state = torch.get_rng_state()
        try:
            return [(place, self._image(place)) for place in places]
        finally:
            torch.set_rng_state(state)

    def _features(self, places: list[Item]) -> Tensor:
        assert self.features is not None
        found = self.features.read([place.sample for place in places], [])
        assert isinstance(found, Tensor), f"the field {self.features.name} gives no tensor, which images must be"
        return found

    def _image(self, place: Item) -> Tensor | None:
        sample = place.sample
        if sample.fault or not any(sample.captions):
            self._skip(sample.fault or f"{sample.where} has no caption")
            return None
        if self.features is not None:
            return torch.empty(0)
        try:
            pixels = decode(sample.image, self.reading.max_pixels)
        except BadImageError as error:
            self._skip(f"image {sample.name} ({sample.where}) can't be decoded: {error}")
            return None
        if self.training:  # torch.manual_seed would do, at the price of half a decoding
            key = stable_id(self.reading.seed, self.epoch.number, sample.image_id, *place.captions)
            torch.default_generator.manual_seed(key)
        return self.transform(pixels)

    def _skip(self, named: str) -> None:
        if not self.training:
            raise UserError(f"{named}. A figure without it would be wrong; replace it or prepare the shards without it")
        self.epoch.skip(named)
