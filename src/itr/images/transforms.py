"""Transforms from decoded images to uint8 tensors of one size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as TF

from itr.backbones.base import ImageSpec, ToRGB
from itr.images.decode import BadImageError as BadImageError
from itr.images.decode import decode_pixels, decode_stored, drop_transparency
from itr.images.decode import to_rgb as on_white

Decoded = Tensor | Image.Image  # RGB [3, H, W], uint8, or an image that is resized in its own mode


def decode(data: bytes, max_pixels: int) -> Tensor:
    """Decode to RGB [3, H, W], uint8, as `decode_pixels` does.

    Raises:
        BadImageError: as `decode_stored`.
    """
    return torch.from_numpy(decode_pixels(data, max_pixels)).permute(2, 0, 1)


def decode_for(data: bytes, max_pixels: int, to_rgb: ToRGB) -> Decoded:
    """Decode for a backbone, see `ImageSpec.to_rgb`.

    Raises:
        BadImageError: as `decode_stored`.
    """
    stored = decode_stored(data, max_pixels)
    return prepared(stored, to_rgb) if isinstance(stored, Image.Image) else torch.from_numpy(stored).permute(2, 0, 1)


def prepared(image: Image.Image, to_rgb: ToRGB) -> Decoded:
    """An image of 8 bits a channel as a backbone's transform takes it, see `ImageSpec.to_rgb`."""
    if to_rgb == "after_resize":
        return image
    return rgb_tensor(on_white(image) if to_rgb == "white" else image)


def read_view(data: bytes, max_pixels: int, transform: Callable[[Any], Tensor]) -> Tensor:
    """Decode an image as the backbone of `transform` needs it, and transform it to [3, size, size], uint8.

    Raises:
        BadImageError: as `decode_stored`.
    """
    return transform(decode_for(data, max_pixels, getattr(transform, "to_rgb", "white")))


def rgb_tensor(image: Decoded) -> Tensor:
    """RGB [3, H, W], uint8; transparent parts of a stored image show the color that is stored for them."""
    if isinstance(image, Tensor):
        return image
    return torch.from_numpy(np.array(drop_transparency(image))).permute(2, 0, 1)


@dataclass
class Augmentation:
    """Augmentation of training images. All random numbers depend only on the seed, the epoch and the image.

    Attributes:
        crop_scale: minimum and maximum fraction of the area of a random crop; `[1, 1]` uses the evaluation crop.
        crop_ratio: minimum and maximum aspect ratio of the crop, before it is resized to a square.
        horizontal_flip: probability of flipping; captions that say left or right become wrong for a flipped image.
        rand_augment: number of consecutive RandAugment operations; 0 disables it.
        rand_augment_magnitude: their strength, from 0 to 30.
    """

    crop_scale: tuple[float, float] = (0.6, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    horizontal_flip: float = 0.0
    rand_augment: int = 0
    rand_augment_magnitude: int = 9

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale={list(self.crop_scale)} must satisfy 0 < low <= high <= 1")
        if not 0 <= self.horizontal_flip <= 1:
            raise ValueError(f"horizontal_flip={self.horizontal_flip} must be a probability, from 0 to 1")

    @property
    def is_none(self) -> bool:
        """Whether training images look as in evaluation, in every epoch."""
        return tuple(self.crop_scale) == (1.0, 1.0) and not self.horizontal_flip and not self.rand_augment


def resize(image: Decoded, size: list[int], mode: InterpolationMode) -> Tensor:
    """Resize to RGB [3, H, W] with antialiasing, to the same pixels as `v2.functional.resize`.

    The input is first made contiguous in channels-last order: the kernel takes nearly twice as long on a crop, whose
    rows are not contiguous, or on separate planes.
    """
    if isinstance(image, Image.Image):  # Pillow weighs colors by their alpha, and takes the nearest pixel of a palette
        return rgb_tensor(TF.resize(image, size, mode))
    contiguous = image[None].contiguous(memory_format=torch.channels_last)
    resized: Tensor = TF.resize_image(contiguous, size, mode, antialias=True)
    return resized[0]


class RandomCrop:
    """The same crops and pixels as `v2.RandomResizedCrop`, in channels-last layout."""

    def __init__(self, size: int, augmentation: Augmentation, mode: InterpolationMode) -> None:
        self.size, self.mode = [size, size], mode
        self.random_crop = v2.RandomResizedCrop(size, augmentation.crop_scale, augmentation.crop_ratio)

    def __call__(self, image: Decoded) -> Tensor:
        """An image of any size to RGB [3, size, size], uint8."""
        box = self.random_crop.make_params([image])
        return resize(TF.crop(image, box["top"], box["left"], box["height"], box["width"]), self.size, self.mode)


class EvaluationTransform:
    """Deterministic preprocessing: resize, then crop the center if the backbone's image spec says so."""

    def __init__(self, spec: ImageSpec) -> None:
        self.size, self.squash = spec.size, spec.resize == "squash"
        self.resize_to, self.crop_offset = spec.resize_to or spec.size, spec.crop_offset
        self.mode, self.to_rgb = InterpolationMode(spec.interpolation), spec.to_rgb

    def __call__(self, image: Decoded) -> Tensor:
        """An image of any size to RGB [3, size, size], uint8."""
        height, width = TF.get_size(image)
        if height == width == self.resize_to:
            return self._cropped(rgb_tensor(image))
        if self.squash:
            return self._cropped(resize(image, [self.resize_to, self.resize_to], self.mode))
        if max(height, width) > 8 * min(height, width):  # resizing an extremely long image would need gigabytes
            image = TF.center_crop(image, [min(height, 8 * width), min(width, 8 * height)])
        return self._cropped(resize(image, [self.resize_to], self.mode))

    def _cropped(self, image: Tensor) -> Tensor:
        left_over = [side - self.size for side in image.shape[1:]]
        top, left = (extra // 2 if self.crop_offset == "down" else round(extra / 2) for extra in left_over)
        return image[:, top : top + self.size, left : left + self.size] if any(left_over) else image


class TrainingTransform:
    """A random view of an image, drawn from torch's global generator."""

    def __init__(self, spec: ImageSpec, augmentation: Augmentation) -> None:
        mode, self.to_rgb = InterpolationMode(spec.interpolation), spec.to_rgb
        steps: list[Callable[[Any], Any]] = []
        if augmentation.crop_scale == (1.0, 1.0):
            steps.append(EvaluationTransform(spec))
        elif augmentation.rand_augment:  # its rounding depends on the memory layout, so keep the crop of v2
            scale, ratio = augmentation.crop_scale, augmentation.crop_ratio
            steps += [v2.RandomResizedCrop(spec.size, scale, ratio, interpolation=mode, antialias=True), rgb_tensor]
        else:
            steps.append(RandomCrop(spec.size, augmentation, mode))
        if augmentation.horizontal_flip:
            steps.append(v2.RandomHorizontalFlip(augmentation.horizontal_flip))
        if augmentation.rand_augment:
            steps.append(v2.RandAugment(augmentation.rand_augment, augmentation.rand_augment_magnitude))
        self.steps = steps

    def __call__(self, image: Decoded) -> Tensor:
        """An image of any size to RGB [3, size, size], uint8."""
        for step in self.steps:
            image = step(image)
        assert isinstance(image, Tensor)
        return image


def stack_images(images: Sequence[Tensor]) -> Tensor:
    """Images [3, S, S] to one tensor [I, 3, S, S], in the layout of the first one: channels last or contiguous."""
    if images[0].stride(0) != 1:
        return torch.stack(list(images))
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
