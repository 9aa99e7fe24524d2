"""Cosines of embeddings: exact ones that are equal in every tile, and fast ones with an error bound."""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from itr.evaluation.score import Score

CHUNK = 8192  # pairs at a time
SAMPLE = 128  # embeddings per side used to measure the error of the fast product


class Cosine(Score):
    """Cosines between embeddings of images [N, D] and of captions [M, D], of any precision.

    Calling it with two slices returns a tile [I, C], float32. The last digits of a floating-point matrix product depend
    on the tile's shape and on the machine, so embeddings are first rounded to integers: the sums of their products are
    then exact in float64, in any order. Equal embeddings have equal cosines in every tile, process and device, and
    a cosine of 1 with each other. The rounding changes a cosine by about 1e-8.
    """

    def __init__(self, image: Tensor, text: Tensor) -> None:
        self.image, self.text = image, text
        self.num_images, self.num_texts = len(image), len(text)
        self._image, self._text = _WholeNumbers(image), _WholeNumbers(text)

    @cached_property
    def _fast(self) -> tuple[Tensor, Tensor]:
        return F.normalize(self.image.float(), dim=-1), F.normalize(self.text.float(), dim=-1)

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        """The exact cosines of a tile [I, C]."""
        (image, image_length), (text, text_length) = self._image[rows], self._text[columns]
        return (image @ text.T / image_length[:, None] / text_length[None, :]).float()

    def pairs(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The exact cosines of images `rows` [P] with captions `columns` [P], pair by pair [P], float32."""
        found = torch.empty(len(rows), device=self.image.device)
        for start in range(0, len(rows), CHUNK):
            some = slice(start, start + CHUNK)
            (image, image_length), (text, text_length) = self._image[rows[some]], self._text[columns[some]]
            found[some] = (image.mul_(text).sum(dim=-1) / image_length / text_length).float()
        return found

    def mean(self, tile: int = CHUNK) -> float:
        """The mean cosine of all pairs, without computing their matrix."""
        image, text = (
            sum(F.normalize(some.double(), dim=-1).sum(dim=0) for some in side.split(tile))
            for side in (self.image, self.text)
        )
        assert isinstance(image, Tensor)
        assert isinstance(text, Tensor)
        return float((image * text).sum()) / (self.num_images * self.num_texts)

    def nearly(self, rows: slice, columns: slice) -> Tensor:
        """The cosines of a tile [I, C] from a float32 product; their error is less than `slack`."""
        return self._fast[0][rows] @ self._fast[1][columns].T

    def slack(self) -> float | None:
        """A bound on the error of `nearly`; None if some embeddings are not finite.

        Rounding errors of a product of D terms add up like a random walk, to about the square root of D. The bound is
        the larger of twice that and eight times the largest error on a sample. This is far more than rounding causes,
        but not a proven bound, which would have to grow with D.
        """
        if not all(torch.isfinite(side.sum(dim=-1)).all() for side in self._fast):
            return None
        rows, columns = (slice(None, None, -(-len(side) // SAMPLE)) for side in self._fast)
        error = float((self.nearly(rows, columns) - self(rows, columns)).abs().max())
        growth: float = 2 * torch.finfo(torch.float32).eps * self.image.shape[1] ** 0.5
        return max(growth, 8 * error) + 1e-7


class _WholeNumbers:
    """Embeddings [N, D] scaled by powers of two to a length of about 2^26 and rounded, so a product is below 2^53.

    Indexing with I rows returns these rows [I, D] and their lengths [I], which are never 0; both are float64.
    """

    def __init__(self, embedding: Tensor) -> None:
        self.embedding = embedding
        self.scale = torch.cat([_scale(rows.double()) for rows in embedding.split(CHUNK)])
        parts = zip(embedding.split(CHUNK), self.scale.split(CHUNK), strict=True)
        self.length = torch.cat([_rounded(*part).square_().sum(dim=-1).sqrt_() for part in parts]).clamp_(min=1)

    def __getitem__(self, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        return _rounded(self.embedding[rows], self.scale[rows]), self.length[rows]


def _rounded(rows: Tensor, scale: Tensor) -> Tensor:
    return (rows.double() * scale[:, None]).round_()


def _scale(rows: Tensor) -> Tensor:
    """The power of two that scales each row [N, D] to a length between 2^25 and 2^26 [N].

    Squares are added pairwise, in an order that does not depend on the number of rows.
    """
    squares = rows.square()
    while squares.shape[1] > 1:
        squares = F.pad(squares, (0, squares.shape[1] % 2))
        half = squares.shape[1] // 2
        squares = squares[:, :half] + squares[:, half:]
    length = squares[:, 0].sqrt().clamp(min=1e-12)
    scale: Tensor = 2**26 * torch.frexp(length).mantissa / length
    return scale
