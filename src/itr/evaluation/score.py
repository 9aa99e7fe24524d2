"""The interface of scores: by tile, by pair, or for all candidates of some queries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

Way = Literal["i2t", "t2i"]


class Score(ABC):
    """The scores of images [N] against captions [M].

    Attributes:
        num_images: N.
        num_texts: M.
        by_query: whether the score of a pair depends on which side is the query; then only `candidates` and `pairs`
            are available.
    """

    num_images: int
    num_texts: int
    by_query: bool = False

    @abstractmethod
    def __call__(self, rows: slice, columns: slice) -> Tensor:
        """Score some images against some captions [I, C]."""

    @abstractmethod
    def pairs(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Score images `rows` [P] with captions `columns` [P], pair by pair [P]."""

    def candidates(self, way: Way, queries: slice) -> Tensor:
        """Score some queries against all their candidates [Q, K]."""
        if way == "i2t":
            return self(queries, slice(0, self.num_texts))
        return self(slice(0, self.num_images), queries).T

    def num_queries(self, way: Way) -> int:
        """The number of queries in a direction."""
        return self.num_images if way == "i2t" else self.num_texts

    def mean(self, tile: int = 1024) -> float:
        """The mean score of all pairs."""
        total = torch.zeros((), dtype=torch.float64)
        for start in range(0, self.num_images, tile):
            total += self.candidates("i2t", slice(start, min(start + tile, self.num_images))).double().sum().cpu()
        return float(total) / (self.num_images * self.num_texts)
