"""The interface of backbones: images and token ids in, embeddings and token-level features out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from itr.component import Component
from itr.errors import UserError
from itr.types import Batch, Encoded, Tokens

ToRGB = Literal["white", "drop", "after_resize"]
Side = Literal["image", "text"]
IMAGE_OUTPUT = "image_output"  # fields of a batch with what frozen towers returned for its images and captions
TEXT_OUTPUT = "text_output"


@dataclass(frozen=True)
class ImageSpec:
    """The image format that a backbone expects.

    Attributes:
        size: side of the square input in pixels.
        mean: channel means of pixel values in [0, 1], subtracted on the device.
        std: channel standard deviations, divided by on the device.
        interpolation: how evaluation images are resized.
        resize: in evaluation, `shortest` resizes the short side and crops the centre, `squash` resizes both sides.
        to_rgb: how images of other modes become RGB: `white` places transparent ones on white, as the image processors
            of transformers do; `drop` ignores transparency, as timm does; `after_resize` resizes the image as it is
            stored (palette and 1-bit images by the nearest pixel) and then ignores transparency, as CLIP and open_clip
            do.
        resize_to: in evaluation, the side to resize to before the centre of `size` is cropped; None for `size`.
        crop_offset: where the centre starts if an odd number of pixels is cropped: `down` rounds half a pixel down, as
            transformers does, `even` to the even number, as torchvision does, and with it timm, CLIP and open_clip.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize: Literal["shortest", "squash"] = "shortest"
    to_rgb: ToRGB = "white"
    resize_to: int | None = None
    crop_offset: Literal["down", "even"] = "down"

    def override(
        self,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        interpolation: Literal["bicubic", "bilinear"] | None,
        resize: Literal["shortest", "squash"] | None,
    ) -> ImageSpec:
        """This format with the given values replaced; None keeps a value."""
        return replace(
            self,
            mean=_channels(mean or self.mean),
            std=_channels(std or self.std),
            interpolation=interpolation or self.interpolation,
            resize=resize or self.resize,
        )

    def described(self) -> dict[str, Any]:
        """The arguments by which a backbone takes this format, as plain types."""
        return {
            "image_size": self.size,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "interpolation": self.interpolation,
            "resize": self.resize,
        }

    def scaled(self, size: int, resize_to: int | None = None) -> ImageSpec:
        """This format for images of another size; without `resize_to`, the same part of them is cropped.

        Raises:
            UserError: `resize_to` is below the size.
        """
        if resize_to is None and self.resize_to is not None:
            resize_to = round(self.resize_to * size / self.size)
        if resize_to is not None and resize_to < size:
            raise UserError(f"resize_to={resize_to} must be at least the size of the images, {size}")
        return replace(self, size=size, resize_to=None if resize_to == size else resize_to)


class Tokenizer(Protocol):
    """Converts captions to token ids. It runs in the loader's workers, so it must be picklable.

    Attributes:
        vocab_size: size of the vocabulary; all ids are smaller.
        max_length: length of the longest caption in tokens, including start and end.
        pad_id: token that pads captions shorter than the longest.
        mask_id: token that hides a word; None if the vocabulary has no such token.
        special_ids: tokens that are not words (start, end, padding, mask ...).
    """

    vocab_size: int
    max_length: int
    pad_id: int
    mask_id: int | None
    special_ids: tuple[int, ...]

    def __call__(self, captions: Sequence[str]) -> Tokens:
        """Tokenize, truncate to `max_length` but keep the end token, and pad to the longest caption."""
        ...


class Backbone(Component, nn.Module, ABC):
    """A pair of towers with a shared embedding space.

    A subclass sets the attributes and defines `encode_image`, `encode_text` and `is_tower`.

    - A backbone that scores pairs, for example by cross-attention between patches and words, overrides `similarity` and
      sets `needs_tokens = True`, so that token-level features are gathered and kept too.
    - A backbone that takes features instead of pixels (region features, the stored output of a tower) names their field
      in `image_field`; `encode_image` then receives this field.
    - A backbone that needs further fields of a batch names them in `needs` and overrides `encode_images`.
    - A backbone with a second, costlier stage sets `rescored` and overrides `rescore`.
    - A backbone whose frozen towers may run once instead of in every step overrides `frozen_sides` and `tower_weights`,
      and, unless the images' embeddings are all that is kept, the four methods from `image_output` to
      `text_from_output`, with which it then defines `encode_image` and `encode_text`.

    Attributes:
        dim: width D of the embeddings.
        image_spec: size and normalisation of the images.
        tokenizer: converts captions to token ids.
        needs_tokens: whether `similarity` or `rescore` uses token-level features.
        keeps_words: whether captions have token-level features.
        image_field: the field of a batch that replaces pixels; None for pixels.
        needs: further fields of every batch, in training and in evaluation (see `itr.data.model_fields`).
        rescored: number of candidates per query that the second stage scores again; 0 for no second stage.
        untrained: parts that start with random weights; they are logged when training begins.
        cache: whether training reads what frozen towers return from files, which it writes first: None if everything
            is frozen and nothing augments their input, `float32` to keep all digits.
        lengths: numbers of tokens, ascending; captions are padded to the next of them, so that a compiled text tower
            sees few shapes. If empty, captions keep their length.
    """

    dim: int
    image_spec: ImageSpec
    tokenizer: Tokenizer
    needs_tokens: bool = False
    keeps_words: bool = True
    image_field: str | None = None
    needs: tuple[str, ...] = ()
    rescored: int = 0
    untrained: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    cache: bool | Literal["float32"] | None = False

    pixel_mean: Tensor
    pixel_std: Tensor

    def set_image_spec(self, spec: ImageSpec) -> None:
        """Set the image format and its normalisation constants (buffers that are not saved in checkpoints)."""
        self.image_spec = spec
        for name, values in (("pixel_mean", spec.mean), ("pixel_std", spec.std)):
            buffer = 255 * torch.tensor(values).view(1, 3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def normalise(self, image: Tensor) -> Tensor:
        """Pixels 0..255 [I, 3, H, W], uint8, to the zero-mean input of the vision tower, float, channels last."""
        last = torch.channels_last  # the fastest format for convolutions
        pixels = image.to(self.pixel_mean.dtype, copy=True, memory_format=last)
        return pixels.sub_(self.pixel_mean).div_(self.pixel_std)  # in place: allocating takes as long as computing

    @abstractmethod
    def encode_image(self, image: Tensor) -> Encoded:
        """Embed pixels [I, 3, H, W], uint8, or the features of `image_field` [I, ...]."""

    @abstractmethod
    def encode_text(self, text: Tokens) -> Encoded:
        """Embed captions [C, L]."""

    def encode_images(self, batch: Batch) -> Encoded:
        """Embed the images of a batch; override it to use more than `batch.image`."""
        output = batch.image_extra.get(IMAGE_OUTPUT)
        return self.encode_image(batch.image) if output is None else self.image_from_output(_tensor(output))

    def encode_texts(self, batch: Batch) -> Encoded:
        """Embed the captions of a batch; override it to use more than `batch.text`."""
        output = batch.text_extra.get(TEXT_OUTPUT)
        return self.encode_text(batch.text) if output is None else self.text_from_output(_tensor(output), batch.text)

    def frozen_sides(self) -> tuple[Side, ...]:
        """The sides whose towers no training changes and no augmentation of this backbone reaches."""
        return ()

    def tower_weights(self, side: Side) -> dict[str, Tensor]:
        """All weights on which the output of a frozen tower depends, by name."""
        raise AssertionError("a backbone with frozen sides defines `tower_weights`")

    def image_output(self, image: Tensor) -> Tensor:
        """What the frozen vision tower returns for pixels [I, 3, H, W], uint8: one row [I, W] or more [I, T, W]."""
        return self.encode_image(image).pooled  # its projection is frozen, too

    def image_from_output(self, output: Tensor) -> Encoded:
        """Embed images from what `image_output` returned, in any precision."""
        return Encoded.pooled_only(output.float())

    def text_output(self, text: Tokens) -> Tensor:
        """What the frozen text tower returns for captions [C, L]: one row each [C, W], or one a token [C, L, W]."""
        raise AssertionError("a backbone with a frozen text side defines `text_output`")

    def text_from_output(self, output: Tensor, text: Tokens) -> Encoded:
        """Embed captions from what `text_output` returned, in any precision, and their mask."""
        raise AssertionError("a backbone with a frozen text side defines `text_from_output`")

    def fields(self) -> Sequence[Any]:
        """User-defined fields (`itr.data.loading.fields.Field`) that the loader's workers read in every split."""
        return ()

    def similarity(self, image: Encoded, text: Encoded) -> Tensor:
        """Score every image against every caption: the cosine of the pooled embeddings [I, C]."""
        if len(image) > len(text):  # so that each caption's scores are contiguous in memory
            return (text.unit @ image.unit.T).T
        return image.unit @ text.unit.T

    def rescore(self, image: Encoded, text: Encoded) -> Tensor:
        """Score image p with caption p by the second stage [P]; only the order of each query's candidates matters."""
        raise AssertionError("a backbone with `rescored` above 0 defines `rescore`")

    def compilable(self) -> list[nn.Module]:
        """The submodules that are worth compiling with `torch.compile`; by default there are none."""
        return []

    def stretched(self, text: Tokens) -> Tokens:
        """Pad captions [C, L] for the text tower [C, L'], where L' >= L is one of `lengths` or the maximum length."""
        length = text.ids.shape[1]
        wanted = min((n for n in (*self.lengths, self.tokenizer.max_length) if n >= length), default=length)
        return text if not self.lengths or wanted == length else text.padded(wanted, self.tokenizer.pad_id)

    @abstractmethod
    def is_tower(self, parameter_name: str) -> bool:
        """Whether a parameter, named relative to this module, belongs to a tower and uses the towers' learning rate."""


def _tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value


def _channels(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)
