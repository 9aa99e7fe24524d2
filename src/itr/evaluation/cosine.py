"""Cosines of embeddings: exact ones, so that ties are ties in every tile, and fast ones with a bound on their error."""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from itr.evaluation.score import Score

CHUNK = 8192  # pairs at a time
SAMPLE = 128  # embeddings of each side on which the error of the fast product is measured


class Cosine(Score):
    """Cosines between embeddings of images [N, D] and of captions [M, D], of any precision.

    Called with two slices it gives a tile [I, C], float32: products are taken in float64 and rounded to float32, so
    that cosines which are equal by arithmetic come out equal whatever tile, process or device they are taken in.
    """

    def __init__(self, image: Tensor, text: Tensor) -> None:
        self.image, self.text = image, text
        self.num_images, self.num_texts = len(image), len(text)
        self._norms = _norms(image), _norms(text)

    @cached_property
    def _fast(self) -> tuple[Tensor, Tensor]:
        return F.normalize(self.image.float(), dim=-1), F.normalize(self.text.float(), dim=-1)

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        """The exact cosines of a tile [I, C]."""
        products = self.image[rows].double() @ self.text[columns].double().T
        return (products / self._norms[0][rows, None] / self._norms[1][None, columns]).float()

    def pairs(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The exact cosines of images `rows` [P] with captions `columns` [P], pair by pair [P], float32."""
        found = torch.empty(len(rows), device=self.image.device)
        for start in range(0, len(rows), CHUNK):
            some = slice(start, start + CHUNK)
            products = self.image[rows[some]].double().mul_(self.text[columns[some]]).sum(dim=-1)
            found[some] = (products / self._norms[0][rows[some]] / self._norms[1][columns[some]]).float()
        return found

    def mean(self, tile: int = CHUNK) -> float:
        """The mean cosine of all pairs, without a matrix of them."""
        image, text = (
            sum(F.normalize(some.double(), dim=-1).sum(dim=0) for some in side.split(tile))
            for side in (self.image, self.text)
        )
        assert isinstance(image, Tensor)
        assert isinstance(text, Tensor)
        return float((image * text).sum()) / (self.num_images * self.num_texts)

    def nearly(self, rows: slice, columns: slice) -> Tensor:
        """The cosines of a tile [I, C] by a product in float32, `slack` away from the exact ones at most."""
        return self._fast[0][rows] @ self._fast[1][columns].T

    def slack(self) -> float | None:
        """A bound of the error of `nearly`; None where it has none, since embeddings are not finite.

        The rounding error of a product of D terms grows with the square root of D. The bound is the larger of twice
        that and eight times the largest error on a sample.
        """
        if not all(torch.isfinite(side.sum(dim=-1)).all() for side in self._fast):
            return None
        rows, columns = (slice(None, None, -(-len(side) // SAMPLE)) for side in self._fast)
        error = float((self.nearly(rows, columns) - self(rows, columns)).abs().max())
        growth: float = 2 * torch.finfo(torch.float32).eps * self.image.shape[1] ** 0.5
        return max(growth, 8 * error) + 1e-7


def _norms(rows: Tensor) -> Tensor:
    """The lengths of embeddings [N, D], float64, never 0 [N]."""
    found = torch.cat([some.double().norm(dim=-1) for some in rows.split(CHUNK)])
    return found.clamp(min=1e-12)
