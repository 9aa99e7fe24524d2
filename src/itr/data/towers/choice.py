"""Which towers of a run are frozen, so that they need to run only once."""

from __future__ import annotations

from dataclasses import dataclass

from itr.backbones.base import Backbone, Side
from itr.errors import UserError
from itr.images.transforms import Augmentation

AS_IN_EVALUATION = "--data.augmentation.crop_scale '[1, 1]' and no flip or RandAugment"


@dataclass(frozen=True)
class Choice:
    """What is kept: the sides, and the type of the numbers in the files."""

    sides: tuple[Side, ...]
    dtype: str


def choose(backbone: Backbone, augmentation: Augmentation, texts: str) -> Choice:
    """The sides whose outputs a training run reads from files, as `Backbone.cache` says.

    Args:
        backbone: the towers.
        augmentation: of training images.
        texts: what is used as captions, see `ShardData`.

    Raises:
        UserError: outputs should be kept, but nothing is frozen, or what is frozen sees another input in each epoch.
    """
    nothing = Choice((), "")
    if backbone.cache is False:
        return nothing
    frozen = backbone.frozen_sides()
    if backbone.cache is None:
        return (
            Choice(frozen, "float16") if len(frozen) == 2 and augmentation.is_none and texts == "captions" else nothing
        )
    if not frozen:
        raise UserError(
            "model.backbone.cache keeps the outputs of frozen towers, but none can be kept: freeze the vision tower "
            "or, for VSE, the text tower with word_mask 0; or set cache to false"
        )
    if "image" in frozen and not augmentation.is_none:
        raise UserError(
            "model.backbone.cache keeps one output of the frozen vision tower for each image, but data.augmentation "
            f"changes the image in each epoch; set {AS_IN_EVALUATION}, or cache to false"
        )
    if "text" in frozen and texts != "captions":
        raise UserError(
            f"model.backbone.cache keeps outputs of the captions, but data.texts is {texts}; set cache to false"
        )
    return Choice(frozen, "float32" if backbone.cache == "float32" else "float16")
