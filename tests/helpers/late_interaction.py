"""A backbone that scores pairs by their tokens."""

from __future__ import annotations

from torch import Tensor, einsum, nn

from itr.backbones import VSE
from itr.types import Encoded


class LateInteraction(VSE):
    """Scores a pair by the best patch of each word."""

    needs_tokens = True

    def similarity(self, image: Encoded, text: Encoded) -> Tensor:
        patches = nn.functional.normalize(image.tokens, dim=-1)
        words = nn.functional.normalize(text.tokens, dim=-1)
        scores = einsum("ipd,cld->icpl", patches, words)
        best = scores.masked_fill(~image.mask[:, None, :, None], -1).amax(dim=2) * text.mask
        return best.sum(dim=-1) / text.mask.sum(dim=-1)
