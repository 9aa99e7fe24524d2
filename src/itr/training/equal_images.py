"""Images of a batch that are the same picture under several ids: they must not be negatives of one another."""

from __future__ import annotations

import torch
from torch import Tensor


def join_equal(image_id: Tensor, content_id: Tensor) -> Tensor:
    """One id for all pairs [B] of the same image, int64: those that share an id, and those that share a content.

    Data sets with one sample per caption, as img2dataset writes them, contain an image several times. It does not wait
    for the device.

    Args:
        image_id: the id of each pair's image [B].
        content_id: the hash of each pair's image file [B].
    """
    content_id = content_id[_first_with_same(image_id)]
    return image_id[_first_with_same(content_id)]


def _first_with_same(values: Tensor) -> Tensor:
    """The first row with the value of each row [B]."""
    ordered, order = torch.sort(values, stable=True)
    return order[torch.searchsorted(ordered, values)]
