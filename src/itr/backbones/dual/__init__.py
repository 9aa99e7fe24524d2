"""transformers' own dual encoders: families, loading, image formats and rules for captions."""

from itr.backbones.dual.backbone import Dual

__all__ = ["Dual"]
