"""The recalls of a gallery in both directions."""

from __future__ import annotations

import torch
from torch import Tensor

from itr.data.shards.positives import Positives
from itr.evaluation.gallery import Gallery
from itr.evaluation.ranks import Matches, precision_over_all, rank, tiles
from itr.evaluation.score import Score, Way

DIRECTIONS: dict[Way, str] = {"i2t": "image to text", "t2i": "text to image"}


def evaluate(
    gallery: Gallery,
    positives: Positives | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """All metrics of a gallery: recalls and mAP in percent, ranks counted from 1.

    Args:
        gallery: embeddings keyed by id, with their scorer.
        positives: all true matches, if known; adds the metrics `all/...`.
        device: device that computes the scores.
    """
    score = gallery.score(device)
    ranks = rank(score, Matches.own(gallery.own_image().to(device), len(gallery.image_id)))
    metrics = with_rsum({"i2t": recalls(ranks.image_to_text), "t2i": recalls(ranks.text_to_image)})
    if positives is not None:
        metrics |= {f"all/{name}": value for name, value in over_all_positives(gallery, score, positives).items()}
    return metrics


def recalls(ranks: Tensor) -> dict[str, float]:
    """R@1, R@5, R@10 and mean reciprocal rank in percent, and median and mean rank, from ranks [Q] counted from 0.

    With one true match per query, R@K is also called Hits@K.
    """
    found = {f"r{k}": 100 * int((ranks < k).sum()) / len(ranks) for k in (1, 5, 10)}
    middle = ranks.sort().values[[(len(ranks) - 1) // 2, len(ranks) // 2]]
    reciprocal = 100 * (1 / (ranks.double() + 1)).mean().item()
    return found | {"medr": int(middle.sum()) // 2 + 1, "meanr": ranks.double().mean().item() + 1, "mrr": reciprocal}


def with_rsum(ways: dict[str, dict[str, float]]) -> dict[str, float]:
    """Merge the metrics of both directions, and add the sum of their six recalls."""
    metrics = {f"{way}_{name}": value for way, values in ways.items() for name, value in values.items()}
    return metrics | {"rsum": sum(metrics[f"{way}_r{k}"] for way in DIRECTIONS for k in (1, 5, 10))}


def over_all_positives(gallery: Gallery, score: Score, positives: Positives, tile: int = 512) -> dict[str, float]:
    """mAP@R and R-Precision in percent, and the mean number of true matches per query, in both directions."""
    found: dict[str, float] = {}
    for way in DIRECTIONS:
        precisions, counts = [], []
        for queries in tiles(score.num_queries(way), tile):
            scores = score.candidates(way, queries).cpu()
            truth = (
                positives.mask(gallery.image_id[queries], gallery.text_id)
                if way == "i2t"
                else positives.mask(gallery.image_id, gallery.text_id[queries]).T
            )
            precisions.append(torch.stack(precision_over_all(scores, truth)))
            counts.append(truth.sum(dim=1))
        average, r_precision = torch.cat(precisions, dim=1).mean(dim=1).tolist()
        matches = torch.cat(counts).double().mean().item()
        found |= _named(way, {"map_at_r": 100 * average, "r_precision": 100 * r_precision, "matches": matches})
    return found


def _named(way: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{way}_{name}": value for name, value in values.items()}


def recall_table(metrics: dict[str, float]) -> str:
    """The metrics as a few lines of text; names may have a prefix such as `test/`."""
    plain = {name.partition("/")[2]: value for name, value in metrics.items()}
    lines = [f"{'':16}{'R@1':>8}{'R@5':>8}{'R@10':>8}{'median':>8}{'mean':>9}"]
    for way, title in DIRECTIONS.items():
        recall = "".join(f"{plain[f'{way}_r{k}']:8.2f}" for k in (1, 5, 10))
        lines.append(f"{title:16}{recall}{plain[f'{way}_medr']:8.0f}{plain[f'{way}_meanr']:9.2f}")
    lines.append(f"{'rsum':16}{plain['rsum']:8.2f}")
    if "all/i2t_map_at_r" in plain:
        lines.append(f"\n{'all true matches':16}{'mAP@R':>8}{'R-Prec':>8}{'a query':>9}")
        for way, title in DIRECTIONS.items():
            figures = (plain[f"all/{way}_{name}"] for name in ("map_at_r", "r_precision", "matches"))
            lines.append("{:16}{:8.2f}{:8.2f}{:9.1f}".format(title, *figures))
    return "\n".join(lines)
