"""The image format that a tower expects."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

from torch import nn

from itr.backbones.base import ImageSpec
from itr.backbones.towers.building import config_of, native_image_size
from itr.errors import UserError
from itr.weights.hub import hub_or_cache
from itr.weights.packages import local_source

log = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STEPS = {  # of a processor whose config does not name them
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": IMAGENET_MEAN,
    "image_std": IMAGENET_STD,
}  # fmt: skip
RESAMPLING: dict[Any, Literal["bicubic", "bilinear"]] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


class Preprocessing(NamedTuple):
    """How the authors of a tower evaluate it.

    Attributes:
        spec: the format of its input.
        resize: short side before the center is cropped; None for the size of the input.
    """

    spec: ImageSpec
    resize: int | None


def untrained_image_spec(tower: nn.Module, size: int | None = None) -> ImageSpec:
    """Image format of a tower whose preprocessing nobody knows: ImageNet's mean and standard deviation."""
    side = int(size or native_image_size(tower) or 224)
    if is_of_timm(tower):
        return ImageSpec(side, IMAGENET_MEAN, IMAGENET_STD, to_rgb="drop", crop_offset="even")
    return ImageSpec(side, IMAGENET_MEAN, IMAGENET_STD)


def pretrained_preprocessing(name: str, tower: nn.Module, size: int | None = None) -> Preprocessing:
    """Preprocessing of a pretrained tower: timm's `pretrained_cfg`, or what preprocessor_config.json says.

    If there is neither, it is ImageNet's, with a warning.

    Args:
        name: the name or folder that the tower was loaded from.
        tower: the tower.
        size: side length of the images, if it is known.
    """
    if is_of_timm(tower) and (config := getattr(config_of(tower), "pretrained_cfg", None)):
        import timm.data

        library: Any = timm.data  # it has no explicit exports
        return timm_preprocessing(library.resolve_data_config(pretrained_cfg=config), size)
    found = _processor_config(local_source(name, "vision"))
    if found:
        return _transformers_preprocessing(name, found, size or _extent(found) or native_image_size(tower) or 224)
    log.warning(
        "%s has no preprocessor_config.json: images are normalized with ImageNet's mean and standard deviation", name
    )
    return Preprocessing(untrained_image_spec(tower, size), None)


def is_of_timm(tower: nn.Module) -> bool:
    """Whether a tower is a model of timm."""
    return bool(config_of(tower).model_type == "timm_wrapper")


def timm_preprocessing(config: Mapping[str, Any], size: int | None = None) -> Preprocessing:
    """Preprocessing by what timm's `resolve_data_config` returns.

    NOTE: of timm's interpolations, all but `bilinear` become `bicubic`.

    Args:
        config: the settings.
        size: side length of the images, if it should differ.
    """
    own = int(config["input_size"][1])
    spec = ImageSpec(own, IMAGENET_MEAN, IMAGENET_STD, to_rgb="drop", crop_offset="even").override(
        config["mean"],
        config["std"],
        "bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        "squash" if config["crop_mode"] == "squash" else "shortest",
    )
    return Preprocessing(replace(spec, size=size or own), int((size or own) / config["crop_pct"]))


def _processor_config(name: str) -> dict[str, Any]:
    """The content of preprocessor_config.json; empty if there is none."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        with hub_or_cache(name):
            found: dict[str, Any] = ImageProcessingMixin.get_image_processor_dict(name)[0]
    except (OSError, ValueError):
        return {}
    return found


def _extent(config: Mapping[str, Any]) -> int | None:
    """Side length of the input by a processor's config."""
    extent: Any = config.get("crop_size") or config.get("size") or {}
    return (extent.get("height") or extent.get("shortest_edge")) if isinstance(extent, dict) else extent


def _transformers_preprocessing(name: str, config: Mapping[str, Any], size: int) -> Preprocessing:
    resizing = config.get("size")
    short = resizing.get("shortest_edge") if isinstance(resizing, dict) else None
    mean, std = _normalisation(
        SimpleNamespace(**STEPS | {name: value for name, value in config.items() if value is not None})
    )
    if config.get("resample") not in RESAMPLING:
        log.warning(
            "%s: its preprocessing has the resampling %s, which is not supported: images are resized with bicubic "
            "interpolation, unless `interpolation` is set", name, config.get("resample", "of an unnamed default"),
        )  # fmt: skip
    squash = isinstance(resizing, dict) and "shortest_edge" not in resizing
    spec = ImageSpec(int(size), IMAGENET_MEAN, IMAGENET_STD).override(
        mean, std, RESAMPLING.get(config.get("resample")), "squash" if squash else "shortest"
    )
    return Preprocessing(spec, short)


def spec_of_processor(processor: Any, name: str) -> ImageSpec:
    """The image format of an image processor of transformers.

    Args:
        processor: the image processor.
        name: names it in messages.

    Raises:
        UserError: it makes something else than squares of one size.
    """
    side, squash = _side_of(processor.size)
    cropped = _side_of(processor.crop_size)[0] if getattr(processor, "do_center_crop", None) else None
    if not side or not processor.do_resize or (cropped or side) > side or not (squash or cropped):
        raise UserError(
            f"{name}: its image processor does not resize and crop images to squares of one size, and itr needs that "
            f"({type(processor).__name__}: size {processor.size}, crop {cropped})"
        )
    if processor.resample not in RESAMPLING:
        log.warning(
            "%s: its preprocessing has the resampling %s, which is not supported: images are resized with bicubic "
            "interpolation, unless `interpolation` is set", name, processor.resample,
        )  # fmt: skip
    mean, std = _normalisation(processor)
    return ImageSpec(
        size=cropped or side,
        mean=mean,
        std=std,
        interpolation=RESAMPLING.get(processor.resample, "bicubic"),
        resize="squash" if squash else "shortest",
        resize_to=side if cropped not in (None, side) else None,
    )


def _side_of(size: Any) -> tuple[int | None, bool]:
    """The side of a square, or the length of the short side; and whether it is a square. None for anything else."""
    height, width, shortest, longest = (
        getattr(size, key, None) or (size.get(key) if isinstance(size, dict) else None)
        for key in ("height", "width", "shortest_edge", "longest_edge")
    )
    if height and height == width:
        return int(height), True
    return (int(shortest) if shortest and not longest else None), False


def _normalisation(processor: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of pixels in [0, 1] that have the effect of a processor's steps."""
    scale = 255 * (processor.rescale_factor if processor.do_rescale else 1.0)
    shift = 1.0 if getattr(processor, "rescale_offset", False) else 0.0  # EfficientNet's: to [-1, 1]
    steps = zip(processor.image_mean, processor.image_std, strict=True) if processor.do_normalize else [(0.0, 1.0)] * 3
    top = getattr(processor, "include_top", False)  # EfficientNet's: divides by the deviation once more
    means, stds = zip(*(((m + shift) / scale, s / scale * (s if top else 1.0)) for m, s in steps), strict=True)
    return means, stds
