"""Backbones: a pair of towers with a shared space, selected in a config by class path."""

from itr.backbones.base import Backbone, ImageSpec
from itr.backbones.clip import CLIP
from itr.backbones.dual import Dual
from itr.backbones.vse import VSE

__all__ = ["CLIP", "VSE", "Backbone", "Dual", "ImageSpec"]
