"""The image format that a pretrained tower expects."""

from __future__ import annotations

import logging
from typing import Any, Literal

from itr.backbones.base import ImageSpec

log = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RESAMPLING: dict[Any, Literal["bicubic", "bilinear"]] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def pretrained_image_spec(name: str, size: int | None) -> ImageSpec:
    """Image format of a pretrained tower; ImageNet's mean and standard deviation if its folder does not define them."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        config: dict[str, Any] = ImageProcessingMixin.get_image_processor_dict(name)[0]
    except (OSError, ValueError):
        log.warning(
            "%s has no preprocessor_config.json: images are normalized with ImageNet's mean and standard deviation",
            name,
        )
        config = {}
    extent = config.get("crop_size") or config.get("size") or {}
    if isinstance(extent, dict):
        extent = extent.get("height") or extent.get("shortest_edge")
    squash = isinstance(config.get("size"), dict) and "shortest_edge" not in config["size"]
    mean, std = config.get("image_mean") or IMAGENET_MEAN, config.get("image_std") or IMAGENET_STD
    if config.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if config and config.get("resample") not in RESAMPLING:
        log.warning(
            "%s: its preprocessing has the resampling %s, which is not supported: images are resized with bicubic "
            "interpolation, unless `interpolation` is set", name, config.get("resample", "of an unnamed default"),
        )  # fmt: skip
    return ImageSpec(
        size=int(size or extent or 224),
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        std=(float(std[0]), float(std[1]), float(std[2])),
        interpolation=RESAMPLING.get(config.get("resample"), "bicubic"),
        resize="squash" if squash else "shortest",
    )
