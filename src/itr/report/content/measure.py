"""Everything that a report shows about a run's embeddings, as plain numbers, so the embeddings can be freed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from itr.data.shards.positives import Positives
from itr.evaluation.gallery import Gallery
from itr.evaluation.ranks import Matches as TrueMatches
from itr.evaluation.ranks import rank, tiles
from itr.evaluation.retrieval import DIRECTIONS, over_all_positives, recalls, with_rsum
from itr.evaluation.score import Score, Way
from itr.report.content.capacity import alignment, effective_rank, modality_gap, uniformity
from itr.report.content.choose import Query, choose_queries
from itr.report.content.matches import PairJudge
from itr.report.content.views import CaptionRanks, ranks_by_image

HITS = 5
MOST_ROWS = 5000  # embeddings used for uniformity, which compares all pairs


@dataclass
class Measured:
    """Measurements of the embeddings of one run.

    Attributes:
        image_id: ids of the images [N].
        text_id: ids of the captions [M].
        own_image: row of each caption's image [M].
        scored_by: name of the scorer, as in embedding and metrics files.
        ranks: rank of each query from 0, by direction [Q].
        figures: recalls, median and mean rank, and mAP over all true matches if they are known.
        views: ranks of captions by image.
        capacity: measures of the embedding space by name.
        missed: by direction, the percentage of failed queries whose first hit is a true or likely match.
        known: whether the data list every true match.
        threshold: lowest cosine between captions that makes a hit a likely match.
        queries: the queries that the gallery shows.
    """

    image_id: np.ndarray
    text_id: np.ndarray
    own_image: np.ndarray
    scored_by: str
    ranks: dict[str, Tensor]
    figures: dict[str, float]
    views: CaptionRanks
    capacity: dict[str, float]
    missed: dict[str, float]
    known: bool
    threshold: float
    queries: list[Query]


def measure(gallery: Gallery, positives: Positives | None, shown: int, device: torch.device) -> Measured:
    """Rank a gallery and measure everything that the report shows about it.

    Args:
        gallery: embeddings keyed by id.
        positives: all true matches, if known.
        shown: number of queries per direction to show on the page.
        device: device that computes the scores.
    """
    own_image = gallery.own_image()
    score = gallery.score(device)
    found = rank(score, TrueMatches.own(own_image.to(device), len(gallery.image_id)))
    ranks = {"i2t": found.image_to_text.cpu(), "t2i": found.text_to_image.cpu()}
    judge = PairJudge(gallery, positives)
    queries: list[Query] = []
    missed: dict[str, float] = {}
    for way in DIRECTIONS:
        hits, scores = top_hits(score, way)
        chosen, missed[way] = choose_queries(way, ranks[way], hits, scores, judge, shown)
        queries += chosen
    return Measured(
        image_id=gallery.image_id.numpy(),
        text_id=gallery.text_id.numpy(),
        own_image=own_image.numpy(),
        scored_by=gallery.scorer.name,
        ranks=ranks,
        figures=figures(ranks) | (over_all_positives(gallery, score, positives) if positives else {}),
        views=ranks_by_image(ranks["t2i"], own_image),
        capacity=capacity(gallery),
        missed=missed,
        known=judge.known,
        threshold=judge.threshold,
        queries=queries,
    )


def figures(ranks: dict[str, Tensor]) -> dict[str, float]:
    """Recalls in percent and median and mean rank in both directions, and the sum of the recalls."""
    return with_rsum({way: recalls(ranks[way]) for way in DIRECTIONS})


def top_hits(score: Score, way: Way, tile: int = 512) -> tuple[Tensor, Tensor]:
    """The rows and scores of each query's best candidates, best first [Q, HITS], on the CPU."""
    rows, scores = [], []
    for part in tiles(score.num_queries(way), tile):
        found = score.candidates(way, part)
        best = found.topk(min(HITS, found.shape[1]), dim=1)
        rows.append(best.indices.cpu())
        scores.append(best.values.cpu())
    return torch.cat(rows), torch.cat(scores)


def capacity(gallery: Gallery) -> dict[str, float]:
    """Measures of the embedding space, computed on unit-length embeddings."""
    unit = {"images": gallery.image.pooled.float(), "captions": gallery.text.pooled.float()}
    unit = {name: torch.nn.functional.normalize(rows, dim=-1) for name, rows in unit.items()}
    found: dict[str, float] = {"width": unit["images"].shape[1]}
    for name, rows in unit.items():
        found[f"effective rank, {name}"] = effective_rank(rows)
    found["alignment"] = alignment(unit["captions"], unit["images"][gallery.own_image()])
    for name, rows in unit.items():
        if len(rows) > 1:
            draws = torch.Generator().manual_seed(0)
            found[f"uniformity, {name}"] = uniformity(rows[torch.randperm(len(rows), generator=draws)[:MOST_ROWS]])
    return found | {"modality gap": modality_gap(unit["images"], unit["captions"])}
