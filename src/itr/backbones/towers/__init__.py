"""Towers of backbones and teachers: built, loaded and set up, from transformers, timm and open_clip.

`clip_features` and `clip_loading` are imported only by what uses open_clip, which takes a second to import.
"""

from itr.backbones.towers.building import make_tower
from itr.backbones.towers.image_specs import pretrained_preprocessing, timm_preprocessing, untrained_image_spec
from itr.backbones.towers.preparing import (
    allow_only_one,
    caption_limit,
    check_fractions,
    enable_checkpointing,
    freeze_unused,
    prepare_tower,
)

__all__ = [
    "allow_only_one",
    "caption_limit",
    "check_fractions",
    "enable_checkpointing",
    "freeze_unused",
    "make_tower",
    "prepare_tower",
    "pretrained_preprocessing",
    "timm_preprocessing",
    "untrained_image_spec",
]
