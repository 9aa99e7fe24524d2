"""How well each caption of an image retrieves it, given that one embedding has to serve several captions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class CaptionRanks:
    """The ranks at which its own captions retrieve an image, for the V images that have captions.

    Attributes:
        row: row of the image, ascending [V].
        number: number of its captions [V].
        best: the best rank, from 0 [V].
        median: the median rank [V], float.
        worst: the worst rank [V].
        ranks: all ranks, image by image, ascending for each image [M].
    """

    row: Tensor
    number: Tensor
    best: Tensor
    median: Tensor
    worst: Tensor
    ranks: Tensor

    def found(self, k: int) -> dict[str, float]:
        """Percentage of images that all, some but not all, or none of their captions retrieve in the top k."""
        everyone, anyone = self.worst < k, self.best < k
        shares = {"all": everyone, "some": anyone & ~everyone, "none": ~anyone}
        return {name: 100 * share.double().mean().item() for name, share in shares.items()}


def ranks_by_image(ranks: Tensor, own_image: Tensor) -> CaptionRanks:
    """Group the ranks of captions by image.

    Args:
        ranks: rank of each caption's own image, from 0 [M].
        own_image: row of that image [M]; an image may have any number of captions.
    """
    order = torch.argsort(ranks, stable=True)
    order = order[torch.argsort(own_image[order], stable=True)]
    row, number = torch.unique_consecutive(own_image[order], return_counts=True)
    ranks = ranks[order]
    start = number.cumsum(0) - number
    middle = (ranks[start + (number - 1) // 2] + ranks[start + number // 2]) / 2
    return CaptionRanks(row, number, ranks[start], middle, ranks[start + number - 1], ranks)
