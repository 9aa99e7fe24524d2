"""Choose the queries that the gallery shows: successes, failures and false negatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from itr.report.content.matches import PairJudge

Verdict = Literal["own", "match", "likely", "wrong", "other"]
Kind = Literal["success", "failure", "false negative"]
KINDS: tuple[Kind, ...] = ("success", "failure", "false negative")


@dataclass
class Hit:
    """One retrieved candidate: its row among the candidates, its score, and the verdict on it."""

    row: int
    score: float
    verdict: Verdict


@dataclass
class Query:
    """A query with its top hits.

    Attributes:
        way: direction, `i2t` or `t2i`.
        kind: why the gallery shows it.
        row: its row among the images (`i2t`) or captions (`t2i`).
        rank: rank of its first annotated match, counted from 0.
        hits: best first.
    """

    way: str
    kind: Kind
    row: int
    rank: int
    hits: list[Hit]


def choose_queries(
    way: str, ranks: Tensor, hits: Tensor, scores: Tensor, judge: PairJudge, number: int, seed: int = 0
) -> tuple[list[Query], float]:
    """Draw queries of every kind: a third of each, or fewer if there are not enough.

    A query fails if none of its annotated matches is ranked first. It is a false negative if the best candidate
    without an annotation is a true match all the same. Queries are drawn at random; if true matches are only
    estimated, the false negatives are those with the strongest evidence.

    Args:
        way: direction, `i2t` or `t2i`.
        ranks: rank of the first annotated match of each query that has one, counted from 0 [Q].
        hits: rows of the top candidates of every query [Q', K].
        scores: their scores [Q', K].
        judge: decides which pairs match.
        number: number of queries to draw.
        seed: seed of the draw.

    Returns:
        The queries, and the percentage of failures that are false negatives.
    """
    query = judge.num_captions.nonzero()[:, 0] if way == "i2t" else torch.arange(len(ranks))  # those with a match
    own = _is_own(way, query, hits[query], judge)
    first = hits[query, own.to(torch.uint8).argmin(dim=1)]
    pair = (first, query) if way == "i2t" else (query, first)
    evidence = torch.where(ranks > 0, judge.evidence(*pair), torch.tensor(-9.0))
    masks = _masks(ranks, evidence)
    draws = torch.rand(len(ranks), generator=torch.Generator().manual_seed(seed))
    chosen = []
    for kind in KINDS:
        order = evidence if kind == "false negative" and not judge.known else draws
        places = order.masked_fill(~masks[kind], -torch.inf).argsort(descending=True, stable=True)
        for place in places[: min(-(-number // 3), int(masks[kind].sum()))].tolist():
            row = int(query[place])
            chosen.append(Query(way, kind, row, int(ranks[place]), _hits(way, row, hits[row], scores[row], judge)))
    failures = int((ranks > 0).sum())
    return chosen, 100 * int(masks["false negative"].sum()) / failures if failures else 0.0


def _masks(ranks: Tensor, evidence: Tensor) -> dict[Kind, Tensor]:
    """The queries of each kind [Q], bool."""
    return {
        "success": ranks == 0,
        "failure": (ranks > 0) & (evidence < 0),
        "false negative": (ranks > 0) & (evidence >= 0),
    }


def _is_own(way: str, query: Tensor, hits: Tensor, judge: PairJudge) -> Tensor:
    """True where a hit is annotated as a match of the query [Q, K]."""
    if way == "i2t":
        return judge.own_image[hits] == query[:, None]
    return hits == judge.own_image[query][:, None]


def _hits(way: str, row: int, hits: Tensor, scores: Tensor, judge: PairJudge) -> list[Hit]:
    query = torch.full_like(hits, row)
    own = _is_own(way, query[:1], hits[None], judge)[0]
    accepted = judge.accepts(hits, query) if way == "i2t" else judge.accepts(query, hits)
    positive: Verdict = "match" if judge.known else "likely"
    negative: Verdict = "wrong" if judge.known else "other"
    return [
        Hit(int(hits[at]), float(scores[at]), "own" if own[at] else positive if accepted[at] else negative)
        for at in range(len(hits))
    ]
