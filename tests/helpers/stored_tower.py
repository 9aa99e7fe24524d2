"""A backbone over the stored tokens of another vision tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from itr.types import Batch, Encoded
from wide import RegionBackbone


class StoredTower(RegionBackbone):
    """Takes what `itr features --output tokens` stored: five tokens of width 8."""

    image_field = "teacher_image"
    needs = ()

    def __init__(self) -> None:
        super().__init__()
        self.image = type(self.image)(8, self.dim)
        del self.size

    def fields(self) -> Sequence[Any]:
        return ()

    def encode_image(self, image: Tensor) -> Encoded:
        return super().encode_image(image.float().unflatten(-1, (-1, 8)))

    def encode_images(self, batch: Batch) -> Encoded:
        return self.encode_image(batch.image)
