"""Images as callers of the Python interface have them, to the pixels that a backbone takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from itr.backbones.base import ImageSpec
from itr.errors import UserError
from itr.images.decode import BadImageError, in_8_bits
from itr.images.transforms import Decoded, EvaluationTransform, decode_for, prepared, stack_images

MAX_PIXELS = 10**9
ACCEPTED = (
    "uint8 pixels, as a tensor [3, H, W] or [I, 3, H, W] or as an array [H, W, 3] or [I, H, W, 3], a PIL image, a "
    "path, or a list of these"
)


def pixels_of(images: Any, spec: ImageSpec) -> Tensor:
    """Resize and crop images as in evaluation: [I, 3, S, S], uint8, where S is the size of `spec`.

    Args:
        images: uint8 pixels [3, H, W] or [I, 3, H, W] as a tensor, [H, W, 3] or [I, H, W, 3] as an array, a PIL image,
            a path, or a list of these.
        spec: the image format of a backbone.

    Raises:
        UserError: they are anything else, or an image could not be decoded.
    """
    if isinstance(images, Tensor) and images.ndim == 4:
        _check_pixels(images, images.shape[1] == 3)
        if images.shape[2:] == (spec.size, spec.size):
            return images
    transform = EvaluationTransform(spec)
    found = [transform(image) for image in _each(images, spec)]
    if not found:
        raise UserError("there are no images to embed: the list is empty")
    return stack_images(found)


def _each(images: Any, spec: ImageSpec) -> list[Decoded]:
    """The images one by one, each to be resized."""
    if isinstance(images, list | tuple):
        return [decoded for image in images for decoded in _each(image, spec)]
    if isinstance(images, str | os.PathLike):
        return [_read(Path(images).expanduser(), spec)]
    if isinstance(images, Image.Image):
        try:
            return [prepared(in_8_bits(images), spec.to_rgb)]
        except (ValueError, OSError) as error:
            raise UserError(f"could not read the image {images!r}: {error}") from None
    if isinstance(images, np.ndarray):
        _check_pixels(images, images.ndim in (3, 4) and images.shape[-1] == 3)
        return list(torch.from_numpy(np.ascontiguousarray(images)).movedim(-1, -3).reshape(-1, 3, *images.shape[-3:-1]))
    if isinstance(images, Tensor):
        _check_pixels(images, images.ndim in (3, 4) and images.shape[-3] == 3)
        return list(images.reshape(-1, *images.shape[-3:]))
    raise UserError(f"cannot embed a {type(images).__name__} as an image; give {ACCEPTED}")


def _read(path: Path, spec: ImageSpec) -> Decoded:
    try:
        return decode_for(path.read_bytes(), MAX_PIXELS, spec.to_rgb)
    except (BadImageError, OSError) as error:
        raise UserError(f"could not read the image {path}: {getattr(error, 'strerror', None) or error}") from None


def _check_pixels(pixels: Tensor | np.ndarray, fits: bool) -> None:
    kind = str(pixels.dtype).removeprefix("torch.")
    if kind != "uint8":
        raise UserError(
            f"pixels must be uint8, from 0 to 255, and are {kind}; values from 0 to 1 become pixels by "
            "(255 * image).round(), then as uint8. Do not normalize them: the backbone does"
        )
    if not fits:
        raise UserError(f"pixels of shape {list(pixels.shape)} are not images; give {ACCEPTED}")
