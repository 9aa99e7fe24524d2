"""Which queries the gallery shows: successes, failures, and failures that may be none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from itr.report.content.matches import Matches

Verdict = Literal["own", "match", "likely", "wrong", "other"]
Kind = Literal["success", "failure", "false negative"]
KINDS: tuple[Kind, ...] = ("success", "failure", "false negative")


@dataclass
class Hit:
    """One candidate: its row among the candidates, its score, and what is known or thought of it."""

    row: int
    score: float
    verdict: Verdict


@dataclass
class Query:
    """A query with its first hits.

    Attributes:
        way: `i2t` or `t2i`.
        kind: why it is shown.
        row: among the images (`i2t`) or captions (`t2i`).
        rank: of its own match, from 0.
        hits: best first.
    """

    way: str
    kind: Kind
    row: int
    rank: int
    hits: list[Hit]


def choose(
    way: str, ranks: Tensor, hits: Tensor, scores: Tensor, matches: Matches, number: int, seed: int = 0
) -> tuple[list[Query], float]:
    """Draw queries of every kind, a third of each, fewer where there are not enough.

    A query fails if its own match is not first. It is a false negative if the first candidate that is not its own is a
    true match that the annotation lacks. Queries are drawn at random; where matches are guessed, those with the
    strongest evidence are taken.

    Args:
        way: `i2t` or `t2i`.
        ranks: of each query that has a match of its own, from 0 [Q].
        hits: rows of the first candidates of every query [Q', K].
        scores: their scores [Q', K].
        matches: tells which pairs hold.
        number: how many queries to draw.
        seed: of the draw.

    Returns:
        The queries, and the percent of failures that are false negatives.
    """
    query = matches.number.nonzero()[:, 0] if way == "i2t" else torch.arange(len(ranks))  # those with a match
    own = _is_own(way, query, hits[query], matches)
    first = hits[query, own.to(torch.uint8).argmin(dim=1)]
    pair = (first, query) if way == "i2t" else (query, first)
    evidence = torch.where(ranks > 0, matches.evidence(*pair), torch.tensor(-9.0))
    masks = {
        "success": ranks == 0,
        "failure": (ranks > 0) & (evidence < 0),
        "false negative": (ranks > 0) & (evidence >= 0),
    }
    draws = torch.rand(len(ranks), generator=torch.Generator().manual_seed(seed))
    chosen = []
    for kind in KINDS:
        order = evidence if kind == "false negative" and not matches.known else draws
        places = order.masked_fill(~masks[kind], -torch.inf).argsort(descending=True, stable=True)
        for place in places[: min(-(-number // 3), int(masks[kind].sum()))].tolist():
            row = int(query[place])
            chosen.append(Query(way, kind, row, int(ranks[place]), _hits(way, row, hits[row], scores[row], matches)))
    failures = int((ranks > 0).sum())
    return chosen, 100 * int(masks["false negative"].sum()) / failures if failures else 0.0


def _is_own(way: str, query: Tensor, hits: Tensor, matches: Matches) -> Tensor:
    """True where a hit is annotated as the query's own [Q, K]."""
    if way == "i2t":
        return matches.own_image[hits] == query[:, None]
    return hits == matches.own_image[query][:, None]


def _hits(way: str, row: int, hits: Tensor, scores: Tensor, matches: Matches) -> list[Hit]:
    query = torch.full_like(hits, row)
    own = _is_own(way, query[:1], hits[None], matches)[0]
    holds = matches.hold(hits, query) if way == "i2t" else matches.hold(query, hits)
    right: Verdict = "match" if matches.known else "likely"
    rest: Verdict = "wrong" if matches.known else "other"
    return [
        Hit(int(hits[at]), float(scores[at]), "own" if own[at] else right if holds[at] else rest)
        for at in range(len(hits))
    ]
