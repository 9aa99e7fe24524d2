"""Retrieval of images of the same class: exact metrics of each query, tile by tile, in which ties never help."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from itr.evaluation.cosine import Cosine
from itr.evaluation.ranks import tiles
from itr.evaluation.score import Score

DEPTH = 10  # the largest K of R@K


@dataclass
class SameClassHits:
    """Results of each query that has a true match, [Q'] each.

    Attributes:
        query: row of the query in the embeddings.
        first: rank of the best true match, from 0; exact below `DEPTH`, a lower bound of at least `DEPTH` otherwise.
        average_precision: mean over k <= R of the precision at k, counted only if rank k is a hit.
        r_precision: fraction of true matches among the top R, where R is the number of true matches.
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
) -> SameClassHits:
    """Search with each query for images of its class, excluding the query itself.

    With R true matches and hits h_k at rank k: R-P = 1/R sum_{k<=R} h_k, and
    AP@R = 1/R sum_{k<=R} h_k (1/k sum_{j<=k} h_j) (https://arxiv.org/abs/2003.08505, section 3.3). An image of another
    class with the same score as a true match is ranked before it. Queries without a true match are skipped.

    Args:
        embedding: embeddings of all images, on the device to compute on [N, D].
        label: class of each image [N], int64.
        queries: rows of the queries [Q]; all by default.
        gallery: rows of the gallery images [G]; all by default.
        tile: number of queries and of gallery images compared at a time; memory grows with its square.
    """
    everything = torch.arange(len(label), device=label.device)
    queries, gallery = (everything if rows is None else rows.to(label.device) for rows in (queries, gallery))
    matches = count_matches(label, queries, gallery)
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
        empty = torch.zeros(0, dtype=torch.float64)
        return SameClassHits(queries, empty.long(), empty, empty)
    first, average, precision = (torch.cat(part) for part in zip(*parts, strict=True))
    return SameClassHits(queries, first, average, precision)


def count_matches(label: Tensor, queries: Tensor, gallery: Tensor) -> Tensor:
    """Number of gallery images in the class of each query, excluding the query itself [Q]."""
    in_gallery = torch.zeros(len(label), dtype=torch.int64, device=label.device)
    in_gallery[gallery] = 1
    of_class = torch.bincount(label[gallery], minlength=int(label.max()) + 1)
    return of_class[label[queries]] - in_gallery[queries]


def _best(
    score: Score, rows: slice, query: Tensor, gallery: Tensor, label: Tensor, depth: tuple[int, int], tile: int
) -> tuple[Tensor, Tensor]:
    """The scores of the best true matches and of the best other images, in descending order, padded with -inf."""
    own = others = torch.zeros(len(query), 0, device=query.device)
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
    """First rank, AP@R and R-Precision of queries [Q], from their best scores [Q, P] and [Q, W] and R [Q]."""
    ahead = others.shape[1] - torch.searchsorted(others.flip(1).contiguous(), own.contiguous())  # wrong, ties included
    order = torch.arange(1, own.shape[1] + 1, device=own.device)
    rank = order + ahead  # of each true match, from 1 [Q, P]
    hit = (rank <= matches[:, None]) & (order <= matches[:, None])
    average = (hit * order / rank.double()).sum(dim=1) / matches
    return rank[:, 0] - 1, average, hit.sum(dim=1) / matches.double()
