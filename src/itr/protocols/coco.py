"""COCO's test set, evaluated with its own captions, with CxC's judgements and with ECCV Caption's.

The package `eccv_caption` (https://arxiv.org/abs/2204.03359) provides the true matches, the list of the 25,000 captions
and, by their order, the five folds of 1,000 images. NOTE: metrics are computed from our own ranks, not by its
functions, which need full rankings for the folds and raise an error if a truncated ranking has no hit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from itr.data.shards.positives import find_rows
from itr.errors import UserError
from itr.evaluation.gallery import Gallery
from itr.evaluation.ranks import Matches, precision_over_all, rank, tiles
from itr.evaluation.retrieval import DIRECTIONS, recalls, with_rsum
from itr.evaluation.score import Score, Way

FOLDS = 5
Judge = Literal["original", "cxc", "eccv"]


@cache
def _folder() -> Path:
    found = find_spec("eccv_caption")
    if found is None or found.origin is None:
        raise UserError(
            "the true matches of COCO's test set are in the package eccv_caption, which is not installed: "
            "pip install eccv_caption"
        )
    return Path(found.origin).parent / "data"


@cache
def caption_ids() -> np.ndarray:
    """COCO's ids of the 25,000 captions of the 5K test set, in the order of `testall_ids.txt` [25000], int64."""
    ids: np.ndarray = np.load(_folder() / "coco_test_ids.npy", allow_pickle=False)
    return ids


@cache
def judged(judge: Judge, way: Literal["i2t", "t2i"]) -> dict[int, list[int]]:
    """The true matches of each query, by COCO's ids."""
    name = {"i2t": "image_to_caption", "t2i": "caption_to_image"}[way]
    found: dict[str, list[int]] = json.loads((_folder() / f"{judge}_{name}.json").read_text(encoding="utf-8"))
    return {int(query): [int(match) for match in matches] for query, matches in found.items()}


def standard(gallery: Gallery) -> Gallery:
    """The 5,000 images and 25,000 captions of the standard test set, from a gallery keyed by COCO's ids.

    Raises:
        UserError: some of them are missing.
    """
    wanted = torch.from_numpy(np.sort(caption_ids()))
    rows = _rows(gallery.text_id, wanted, "captions", "annotation ids as caption_id")
    images = torch.tensor(sorted(judged("original", "i2t")))
    return gallery.rows(_rows(gallery.image_id, images, "images", "image ids as image_id"), rows)


def _rows(ids: Tensor, wanted: Tensor, what: str, hint: str) -> Tensor:
    at, known = find_rows(wanted, ids)
    missing = wanted[~known]
    if len(missing):
        raise UserError(
            f"{len(missing):,} of the {len(wanted):,} {what} of COCO's 5K test are missing, such as {int(missing[0])}; "
            f"the protocol needs all of them, with COCO's {hint}"
        )
    return at


def coco_recalls(gallery: Gallery, device: torch.device | str = "cpu") -> dict[str, float]:
    """Recalls on all 5,000 images, `coco5k/...`, and the mean over five folds of 1,000, `coco1k/...`."""
    gallery = standard(gallery)
    metrics = {f"coco5k/{name}": value for name, value in _recalls(gallery, device).items()}
    folds = [_recalls(fold, device) for fold in _folds(gallery)]
    means = {name: sum(fold[name] for fold in folds) / FOLDS for name in folds[0]}
    return metrics | {f"coco1k/{name}": value for name, value in means.items()}


def _recalls(gallery: Gallery, device: torch.device | str) -> dict[str, float]:
    ranks = rank(gallery.score(device), Matches.own(gallery.own_image().to(device), len(gallery.image_id)))
    return with_rsum({"i2t": recalls(ranks.image_to_text), "t2i": recalls(ranks.text_to_image)})


def _folds(gallery: Gallery) -> list[Gallery]:
    """Five folds of 5,000 consecutive captions in the order of `caption_ids`, with their images."""
    found = []
    for ids in np.split(caption_ids(), FOLDS):
        texts = torch.searchsorted(gallery.text_id, torch.from_numpy(np.sort(ids)))
        images = torch.searchsorted(gallery.image_id, gallery.text_image_id[texts].unique())
        found.append(gallery.rows(images, texts))
    return found


Truth = Mapping[str, Mapping[int, Sequence[int]]]
"""The true matches of each query by COCO's ids; image queries under `i2t`, caption queries under `t2i`."""


def truth_of(judge: Judge) -> Truth:
    """The matches that a judge found true, in both directions."""
    return {"i2t": judged(judge, "i2t"), "t2i": judged(judge, "t2i")}


def judged_recalls(gallery: Gallery, truth: Truth, device: torch.device | str = "cpu") -> dict[str, float]:
    """R@K, where any caption or image that the judges found true is a hit."""
    return with_rsum({way: recalls(_judged_ranks(gallery, truth[way], way, device)) for way in DIRECTIONS})


def _judged_ranks(gallery: Gallery, truth: Mapping[int, Sequence[int]], way: Way, device: torch.device | str) -> Tensor:
    score, pairs = _judged_score(gallery, truth, way, device), _pairs(gallery, truth, way).to(device)
    ranks = rank(score, Matches(pairs[0], pairs[1], score.num_images, score.num_texts), ways=(way,))
    return ranks.image_to_text if way == "i2t" else ranks.text_to_image


def _judged_score(gallery: Gallery, truth: Mapping[int, Sequence[int]], way: Way, device: torch.device | str) -> Score:
    """The scores of the judged queries against all candidates."""
    queries, everything = torch.tensor(sorted(truth)), slice(None)
    if way == "i2t":
        return gallery.rows(torch.searchsorted(gallery.image_id, queries), everything).score(device)
    return gallery.rows(everything, torch.searchsorted(gallery.text_id, queries)).score(device)


def _pairs(gallery: Gallery, truth: Mapping[int, Sequence[int]], way: str) -> Tensor:
    """Image row and caption row of each true match [2, P]; query rows count judged queries only."""
    candidates = gallery.text_id if way == "i2t" else gallery.image_id
    flat = [(row, match) for row, query in enumerate(sorted(truth)) for match in truth[query]]
    rows, matches = torch.tensor(flat).T.contiguous()
    columns, known = find_rows(matches, candidates)  # some matches are not among the 25,000 captions
    pair = rows[known], columns[known]
    return torch.stack(pair if way == "i2t" else pair[::-1])


def judged_precisions(
    gallery: Gallery, truth: Truth, device: torch.device | str = "cpu", tile: int = 256
) -> dict[str, float]:
    """mAP@R and R-Precision in percent, over all matches that the judges found true.

    NOTE: two of ECCV Caption's matches are not among the 25,000 captions. They still count in R, as in the authors'
    package.
    """
    metrics: dict[str, float] = {}
    for way in DIRECTIONS:
        score, pairs = _judged_score(gallery, truth[way], way, device), _pairs(gallery, truth[way], way)
        true = torch.zeros(score.num_images, score.num_texts, dtype=torch.bool)
        true[pairs[0], pairs[1]] = True
        totals = torch.tensor([len(set(matches)) for _, matches in sorted(truth[way].items())])
        found = []
        for queries in tiles(len(totals), tile):
            right = true[queries] if way == "i2t" else true[:, queries].T
            found.append(torch.stack(precision_over_all(score.candidates(way, queries).cpu(), right, totals[queries])))
        average, r_precision = torch.cat(found, dim=1).mean(dim=1).tolist()
        metrics |= {f"{way}_map_at_r": 100 * average, f"{way}_r_precision": 100 * r_precision}
    return metrics


def eccv_metrics(gallery: Gallery, device: torch.device | str = "cpu") -> dict[str, float]:
    """mAP@R, R-Precision and R@1 of ECCV Caption, in percent, `eccv/...`."""
    gallery, truth = standard(gallery), truth_of("eccv")
    metrics = judged_precisions(gallery, truth, device)
    metrics |= {f"{way}_r1": recalls(_judged_ranks(gallery, truth[way], way, device))["r1"] for way in DIRECTIONS}
    return {f"eccv/{name}": value for name, value in metrics.items()}


def cxc_recalls(gallery: Gallery, device: torch.device | str = "cpu") -> dict[str, float]:
    """Recalls with CxC's judgements (https://arxiv.org/abs/2004.15020), `cxc/...`."""
    found = judged_recalls(standard(gallery), truth_of("cxc"), device)
    return {f"cxc/{name}": value for name, value in found.items()}


def read_plausible(folder: Path) -> Truth:
    """The plausible matches of each query, from files that are not part of `eccv_caption`.

    Args:
        folder: folder with pm_image_to_caption.json and pm_caption_to_image.json.

    Raises:
        UserError: a file is missing or damaged.
    """
    truth = {}
    for way, name in (("i2t", "pm_image_to_caption.json"), ("t2i", "pm_caption_to_image.json")):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
            truth[way] = {int(query): [int(match) for match in matches] for query, matches in found.items()}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise UserError(f"could not read the plausible matches {folder / name}: {error}") from None
    return truth


def pmrp(gallery: Gallery, truth: Truth, device: torch.device | str = "cpu") -> dict[str, float]:
    """R-Precision over plausible matches, `pmrp/...` (PCME, https://arxiv.org/abs/2101.05068)."""
    found = judged_precisions(standard(gallery), truth, device)
    return {f"pmrp/{way}": found[f"{way}_r_precision"] for way in DIRECTIONS}


def count_queries(gallery: Gallery, truth: Truth) -> dict[str, int]:
    """Number of queries in each direction that have a true match in the gallery; only these are measured."""
    gallery = standard(gallery)
    return {way: len(_pairs(gallery, truth[way], way)[0 if way == "i2t" else 1].unique()) for way in DIRECTIONS}
