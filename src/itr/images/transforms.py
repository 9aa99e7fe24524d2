"""Encoded images to uint8 tensors of one size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as TF

from itr.backbones.base import ImageSpec
from itr.images.decode import BadImageError as BadImageError
from itr.images.decode import decode_pixels


def decode(data: bytes, max_pixels: int) -> Tensor:
    """Decode to RGB [3, H, W], uint8, as `decode_pixels` does.

    Raises:
        BadImageError: if the bytes are no whole image, or their header announces more than `max_pixels`.
    """
    return torch.from_numpy(decode_pixels(data, max_pixels)).permute(2, 0, 1)


@dataclass
class Augmentation:
    """What happens to a training image. Every draw depends on seed, epoch and image alone.

    Attributes:
        crop_scale: smallest and largest share of the area that a random crop keeps; `[1, 1]` keeps the evaluation crop.
        crop_ratio: smallest and largest aspect ratio of the crop, before it is resized to a square.
        horizontal_flip: probability of mirroring; captions that say left or right are not true of a mirrored image.
        rand_augment: number of RandAugment operations in a row; 0 for none.
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
            raise ValueError(f"crop_scale is {list(self.crop_scale)}; it must satisfy 0 < low <= high <= 1")
        if not 0 <= self.horizontal_flip <= 1:
            raise ValueError(f"horizontal_flip is {self.horizontal_flip}; it must be a probability")


def resize(image: Tensor, size: list[int], mode: InterpolationMode) -> Tensor:
    """Resize [3, H, W] as `v2.functional.resize` does with antialiasing, to the same pixels.

    They are first laid side by side in memory, three bytes each: from a crop, whose rows lie apart, or from planes the
    kernel takes nearly twice the time.
    """
    whole = image[None].contiguous(memory_format=torch.channels_last)
    resized: Tensor = TF.resize_image(whole, size, mode, antialias=True)
    return resized[0]


class RandomCrop:
    """The pixels of `v2.RandomResizedCrop`, from the same draws, laid out channels last."""

    def __init__(self, size: int, augmentation: Augmentation, mode: InterpolationMode) -> None:
        self.size, self.mode = [size, size], mode
        self.drawn = v2.RandomResizedCrop(size, augmentation.crop_scale, augmentation.crop_ratio)

    def __call__(self, image: Tensor) -> Tensor:
        """[3, H, W] to [3, size, size], uint8."""
        box = self.drawn.make_params([image])
        top, left = box["top"], box["left"]
        return resize(image[:, top : top + box["height"], left : left + box["width"]], self.size, self.mode)


class EvaluationTransform:
    """The same image every time: resize, and crop the centre where the backbone wants it."""

    def __init__(self, spec: ImageSpec) -> None:
        self.size, self.squash = spec.size, spec.resize == "squash"
        self.mode = InterpolationMode(spec.interpolation)

    def __call__(self, image: Tensor) -> Tensor:
        """[3, H, W] to [3, size, size], uint8."""
        height, width = image.shape[1:]
        if height == width == self.size:
            return image
        if self.squash:
            return resize(image, [self.size, self.size], self.mode)
        if max(height, width) > 8 * min(height, width):  # a ribbon: resized whole, it would need gigabytes
            image = TF.center_crop(image, [min(height, 8 * width), min(width, 8 * height)])
        cropped: Tensor = TF.center_crop_image(resize(image, [self.size], self.mode), [self.size, self.size])
        return cropped


class TrainingTransform:
    """A random view of an image, drawn from torch's global generator."""

    def __init__(self, spec: ImageSpec, augmentation: Augmentation) -> None:
        mode = InterpolationMode(spec.interpolation)
        steps: list[Callable[[Tensor], Tensor]] = []
        if augmentation.crop_scale == (1.0, 1.0):
            steps.append(EvaluationTransform(spec))
        elif augmentation.rand_augment:  # whose last bits depend on how pixels lie: the crop stays as v2 gives it
            scale, ratio = augmentation.crop_scale, augmentation.crop_ratio
            steps.append(v2.RandomResizedCrop(spec.size, scale, ratio, interpolation=mode, antialias=True))
        else:
            steps.append(RandomCrop(spec.size, augmentation, mode))
        if augmentation.horizontal_flip:
            steps.append(v2.RandomHorizontalFlip(augmentation.horizontal_flip))
        if augmentation.rand_augment:
            steps.append(v2.RandAugment(augmentation.rand_augment, augmentation.rand_augment_magnitude))
        self.steps = steps

    def __call__(self, image: Tensor) -> Tensor:
        """[3, H, W] to [3, size, size], uint8."""
        for step in self.steps:
            image = step(image)
        return image


def stack(images: Sequence[Tensor]) -> Tensor:
    """Images [3, S, S] to one tensor [I, 3, S, S], laid out as they are: channels last where the first is."""
    if images[0].stride(0) != 1:
        return torch.stack(list(images))
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
