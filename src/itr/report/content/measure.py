"""Everything that a page shows about a run's embeddings, in plain numbers, so that the embeddings can be let go."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from itr.data.shards.positives import Positives
from itr.evaluation.gallery import Gallery
from itr.evaluation.ranks import Matches as TrueMatches
from itr.evaluation.ranks import rank, tiles
from itr.evaluation.retrieval import DIRECTIONS, over_all_positives, recalls
from itr.evaluation.score import Score, Way
from itr.report.content.capacity import alignment, effective_rank, modality_gap, uniformity
from itr.report.content.choose import Query, choose_queries
from itr.report.content.matches import PairJudge
from itr.report.content.views import CaptionRanks, ranks_by_image

HITS = 5
MOST_ROWS = 5000  # of which uniformity is taken: it looks at all pairs


@dataclass
class Measured:
    """What was found of the embeddings of one run.

    Attributes:
        image_id: the images [N].
        text_id: the captions [M].
        own_image: the row of each caption's image [M].
        ranks: by direction, of each query from 0 [Q].
        figures: recalls, median and mean rank, and mAP over all true matches where known.
        views: ranks of captions by image.
        capacity: figures of the embedding space by name.
        missed: by direction, the percent of failures whose first hit holds, or looks as if it did.
        known: whether the data tell every true match.
        threshold: from which cosine a caption resembles those of an image.
        queries: what the gallery shows.
    """

    image_id: np.ndarray
    text_id: np.ndarray
    own_image: np.ndarray
    ranks: dict[str, Tensor]
    figures: dict[str, float]
    views: CaptionRanks
    capacity: dict[str, float]
    missed: dict[str, float]
    known: bool
    threshold: float
    queries: list[Query]


def measure(gallery: Gallery, positives: Positives | None, shown: int, device: torch.device) -> Measured:
    """Rank a gallery and look at it.

    Args:
        gallery: embeddings keyed by id.
        positives: every true match, where known.
        shown: queries to choose for the page in each direction.
        device: where to score.
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
    """Recalls in percent, median and mean rank of both directions, and the sum of the recalls."""
    found = {f"{way}_{name}": value for way in DIRECTIONS for name, value in recalls(ranks[way]).items()}
    return found | {"rsum": sum(found[f"{way}_r{k}"] for way in DIRECTIONS for k in (1, 5, 10))}


def top_hits(score: Score, way: Way, tile: int = 512) -> tuple[Tensor, Tensor]:
    """The rows and scores of each query's first candidates, best first [Q, HITS], on the CPU."""
    rows, scores = [], []
    for part in tiles(score.num_queries(way), tile):
        found = score.candidates(way, part)
        best = found.topk(min(HITS, found.shape[1]), dim=1)
        rows.append(best.indices.cpu())
        scores.append(best.values.cpu())
    return torch.cat(rows), torch.cat(scores)


def capacity(gallery: Gallery) -> dict[str, float]:
    """Figures of the embedding space, over unit embeddings."""
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
