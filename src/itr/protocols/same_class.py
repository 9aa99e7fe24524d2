"""Search for images of the same class: exact figures of each query, tile by tile, where ties never help."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from itr.evaluation.cosine import Cosine
from itr.evaluation.ranks import tiles
from itr.evaluation.score import Score

DEPTH = 10  # the largest K of R@K


@dataclass
class Hits:
    """What each query with a true match finds, [Q'] each.

    Attributes:
        query: row of the query in the embeddings.
        first: place of the best true match from 0; one past `DEPTH` may be too low, but not below it.
        average_precision: mean over k <= R of the precision at k where there is a hit.
        r_precision: share of true matches among the R best, R being the number of true matches.
    """

    query: Tensor
    first: Tensor
    average_precision: Tensor
    r_precision: Tensor

    def figures(self) -> dict[str, float]:
        """R@1, R@10, mAP@R and R-Precision in percent."""
        found = {f"r{k}": 100 * int((self.first < k).sum()) / len(self.first) for k in (1, DEPTH)}
        means = {"map_at_r": self.average_precision, "r_precision": self.r_precision}
        return found | {name: 100 * values.mean().item() for name, values in means.items()}


def search_same_class(
    embedding: Tensor, label: Tensor, queries: Tensor | None = None, gallery: Tensor | None = None, tile: int = 2048
) -> Hits:
    """Search with each query for images of its class, itself excluded.

    With R true matches and hits h_k at rank k: R-P = 1/R sum_{k<=R} h_k, and
    AP@R = 1/R sum_{k<=R} h_k (1/k sum_{j<=k} h_j) (https://arxiv.org/abs/2003.08505, section 3.3). An image of another
    class that scores as high as a true match comes before it. A query without any true match is left out.

    Args:
        embedding: of all images, on the device to work on [N, D].
        label: class of each image [N], int64.
        queries: rows that are searched with [Q]; all by default.
        gallery: rows that are searched [G]; all by default.
        tile: queries and gallery images compared at a time; memory grows with its square.
    """
    everything = torch.arange(len(label), device=label.device)
    queries, gallery = (everything if rows is None else rows.to(label.device) for rows in (queries, gallery))
    matches = true_matches(label, queries, gallery)
    queries, matches = queries[matches > 0], matches[matches > 0]
    score = Cosine(embedding[queries], embedding[gallery])
    most = int(matches.max()) if len(matches) else 0
    wrong = max(most, DEPTH)
    step = min(tile, max(1, tile * tile // (tile + 2 * (most + wrong))))
    parts = []
    for rows in tiles(len(queries), step):
        own, others = _best(score, rows, queries[rows], gallery, label, (most, wrong), tile)
        parts.append(_measure(own, others, matches[rows]))
    if not parts:
        nothing = torch.zeros(0, dtype=torch.float64)
        return Hits(queries, nothing.long(), nothing, nothing)
    first, average, precision = (torch.cat(part) for part in zip(*parts, strict=True))
    return Hits(queries, first, average, precision)


def true_matches(label: Tensor, queries: Tensor, gallery: Tensor) -> Tensor:
    """How many gallery images of its class each query has, itself excluded [Q]."""
    in_gallery = torch.zeros(len(label), dtype=torch.int64, device=label.device)
    in_gallery[gallery] = 1
    of_class = torch.bincount(label[gallery], minlength=int(label.max()) + 1)
    return of_class[label[queries]] - in_gallery[queries]


def _best(
    score: Score, rows: slice, query: Tensor, gallery: Tensor, label: Tensor, depth: tuple[int, int], tile: int
) -> tuple[Tensor, Tensor]:
    """The scores of the best true matches and of the best other images, in descending order; -inf where none is."""
    nothing = torch.zeros(len(query), 0, device=query.device)
    own, others = nothing, nothing
    for columns in tiles(len(gallery), tile):
        scores = score(rows, columns)
        same = label[query][:, None] == label[gallery[columns]][None, :]
        itself = query[:, None] == gallery[columns][None, :]
        own = _largest(own, scores.masked_fill(~same | itself, -torch.inf), depth[0])
        others = _largest(others, scores.masked_fill(same, -torch.inf), depth[1])
    return own, others


def _largest(kept: Tensor, scores: Tensor, depth: int) -> Tensor:
    together = torch.cat([kept, scores], dim=1)
    return together.topk(min(depth, together.shape[1]), dim=1).values


def _measure(own: Tensor, others: Tensor, matches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First place, AP@R and R-Precision of queries [Q], from their best scores [Q, P] and [Q, W] and R [Q]."""
    ahead = others.shape[1] - torch.searchsorted(others.flip(1).contiguous(), own.contiguous())  # wrong ones, tied too
    order = torch.arange(1, own.shape[1] + 1, device=own.device)
    place = order + ahead  # of each true match, from 1 [Q, P]
    hit = (place <= matches[:, None]) & (order <= matches[:, None])
    average = (hit * order / place.double()).sum(dim=1) / matches
    return place[:, 0] - 1, average, hit.sum(dim=1) / matches.double()
