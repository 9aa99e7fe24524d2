"""Two-stage retrieval: a cheap score for all pairs, and a costlier one for each query's best candidates."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from itr.distributed import gather_uneven, process_number, world_size
from itr.evaluation.score import Score, Way
from itr.types import Encoded

QUERIES = 256  # queries whose candidates are sorted at a time
PAIRS = 256  # pairs that the second stage scores at a time


class Rescorer(Protocol):
    """The second stage of a backbone."""

    rescored: int

    def rescore(self, image: Encoded, text: Encoded) -> Tensor:
        """Score image p with caption p [P]."""
        ...


class Reranked(Score):
    """The first stage's best candidates for each query, sorted by the second stage, followed by all others.

    Candidates on the shortlist have the score of the second stage. The others keep the order of the first stage, below
    the worst of the shortlist, so R@K is that of the second stage for any K up to the shortlist's length. Each
    direction has its own shortlists, so a pair may have two scores.

    NOTE: among candidates that tie at the end of a shortlist, the first in the gallery are taken. Within it, as
    everywhere, a wrong candidate that ties with the true match is ranked before it.

    Args:
        first: the first stage.
        backbone: the backbone that has the second stage.
        image: the images [N], on the device of the backbone.
        text: the captions [M].
    """

    by_query = True

    def __init__(self, first: Score, backbone: Rescorer, image: Encoded, text: Encoded) -> None:
        self.first, self.backbone, self.image, self.text = first, backbone, image, text
        self.num_images, self.num_texts = len(image), len(text)
        self._shortlists: dict[Way, tuple[Tensor, Tensor]] = {}

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        """Not available, because the score depends on which side is the query."""
        raise AssertionError("a re-ranked score depends on the query: use `candidates`")

    def pairs(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Score images `rows` [P] with captions `columns` [P] by the second stage, pair by pair [P]."""
        parts = zip(rows.split(PAIRS), columns.split(PAIRS), strict=True)
        with torch.no_grad(), torch.autocast(self.image.pooled.device.type, enabled=False):
            found = [self.backbone.rescore(self.image.rows(some), self.text.rows(others)) for some, others in parts]
        return torch.cat(found).float()

    def candidates(self, way: Way, queries: slice) -> Tensor:
        """Score some queries against all their candidates [Q, K], float64."""
        shortlist, rescored = (part[queries] for part in self.shortlist(way))
        scores = self.first.candidates(way, queries).double()
        below = scores - scores.amax(dim=1, keepdim=True) + rescored.amin(dim=1, keepdim=True) - 1
        return below.scatter(1, shortlist, rescored)

    def shortlist(self, way: Way) -> tuple[Tensor, Tensor]:
        """The best candidates of each query by the first stage, and their scores by the second [Q, K]; cached.

        The processes of a run divide the queries among them.
        """
        if way not in self._shortlists:
            number = self.num_queries(way)
            first, last = (number * (process_number() + end) // world_size() for end in (0, 1))
            parts = [self._rescore(way, slice(s, min(s + QUERIES, last))) for s in range(first, last, QUERIES)]
            length = min(self.backbone.rescored, self.num_texts if way == "i2t" else self.num_images)
            device = self.image.pooled.device
            none = torch.zeros(0, length, dtype=torch.int64, device=device), torch.zeros(0, length, device=device)
            rows, scores = (torch.cat(part) for part in zip(none, *parts, strict=True))
            self._shortlists[way] = gather_uneven(rows), gather_uneven(scores).double()
        return self._shortlists[way]

    def _rescore(self, way: Way, queries: slice) -> tuple[Tensor, Tensor]:
        scores = self.first.candidates(way, queries)
        best = scores.sort(dim=1, descending=True, stable=True).indices[:, : self.backbone.rescored]
        query = torch.arange(queries.start, queries.stop, device=best.device).repeat_interleave(best.shape[1])
        pair = (query, best.flatten()) if way == "i2t" else (best.flatten(), query)
        return best, self.pairs(*pair).view(best.shape)
