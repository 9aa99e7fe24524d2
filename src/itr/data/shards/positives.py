"""Which captions match which images, where more matches are known than each caption's own image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass
class Positives:
    """True matches as pairs of ids: caption `caption_id[p]` matches image `image_id[p]` [P], int64."""

    image_id: Tensor
    caption_id: Tensor

    @classmethod
    def from_pairs(cls, image_id: np.ndarray, caption_id: np.ndarray) -> Positives:
        """From two arrays [P] of the same length."""
        if image_id.shape != caption_id.shape:
            raise ValueError(f"{len(image_id)} image ids but {len(caption_id)} caption ids")
        return cls(torch.from_numpy(image_id), torch.from_numpy(caption_id))

    def mask(self, image_id: Tensor, caption_id: Tensor) -> Tensor:
        """True where caption c matches image i: ascending ids [I], [C] -> bool [I, C]; other ids are ignored."""
        rows, known_row = find_rows(self.image_id, image_id)
        columns, known_column = find_rows(self.caption_id, caption_id)
        mask = torch.zeros(len(image_id), len(caption_id), dtype=torch.bool)
        known = known_row & known_column
        mask[rows[known], columns[known]] = True
        return mask


def find_rows(wanted: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of `wanted` [P] among ascending ids [N]: rows [P], and whether each id was found, bool [P]."""
    at = torch.searchsorted(ids, wanted).clamp(max=len(ids) - 1)
    return at, ids[at] == wanted
