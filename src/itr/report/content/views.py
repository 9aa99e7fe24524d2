"""How well each of an image's captions finds it: what one embedding for many views is judged by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Views:
    """The ranks that each image has from its own captions, for the V images that have captions.

    Attributes:
        row: the image [V], ascending.
        number: how many captions it has [V].
        best: the best rank, from 0 [V].
        median: the middle rank, the mean of two for an even number [V], float.
        worst: the worst rank [V].
        ranks: all ranks, image by image, ascending within one [M].
    """

    row: Tensor
    number: Tensor
    best: Tensor
    median: Tensor
    worst: Tensor
    ranks: Tensor

    def found(self, k: int) -> dict[str, float]:
        """Percent of images that all, some but not all, or none of their captions find among the first k."""
        everyone, anyone = self.worst < k, self.best < k
        shares = {"all": everyone, "some": anyone & ~everyone, "none": ~anyone}
        return {name: 100 * share.double().mean().item() for name, share in shares.items()}


def per_view(ranks: Tensor, own_image: Tensor) -> Views:
    """Gather the ranks of captions by image.

    Args:
        ranks: rank of each caption's own image, from 0 [M].
        own_image: row of that image [M], any number of captions an image.
    """
    order = torch.argsort(ranks, stable=True)
    order = order[torch.argsort(own_image[order], stable=True)]
    row, number = torch.unique_consecutive(own_image[order], return_counts=True)
    ranks = ranks[order]
    start = number.cumsum(0) - number
    middle = (ranks[start + (number - 1) // 2] + ranks[start + number // 2]) / 2
    return Views(row, number, ranks[start], middle, ranks[start + number - 1], ranks)
