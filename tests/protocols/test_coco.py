"""COCO 1K and 5K, CxC and ECCV Caption on the real lists of ids, against the package that provides the judgments."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from itr.embedding.files import pooled_only
from itr.errors import UserError
from itr.evaluation.cosine import Cosine
from itr.evaluation.gallery import Gallery
from itr.evaluation.ranks import tiles
from itr.protocols.coco import caption_ids, coco_recalls, cxc_recalls, eccv_metrics, judged, standard

WIDTH = 16
JUDGES = ("original", "cxc", "eccv")


def planted(kind: str) -> Gallery:
    """The whole test set with embeddings that partly reflect the true matches; `coarse` ones have many tied cosines."""
    generator = torch.Generator().manual_seed(1)
    owner = judged("original", "t2i")
    text_id = torch.from_numpy(np.sort(caption_ids()))
    image_id = torch.tensor(sorted(judged("original", "i2t")))
    text_image_id = torch.tensor([owner[i][0] for i in text_id.tolist()])
    image = torch.randn(len(image_id), WIDTH, generator=generator)
    own = torch.searchsorted(image_id, text_image_id)
    text = image[own] + (0.7 if kind != "random" else 1e6) * torch.randn(len(text_id), WIDTH, generator=generator)
    if kind == "coarse":
        image, text = image.sign(), text.sign()
    return Gallery(pooled_only(image), image_id, pooled_only(text), text_id, text_image_id)


def rankings(gallery: Gallery, judge: str, way: str, within_fold: bool = False) -> dict[int, list[int]]:
    """The top 50 candidates of each query, wrong ones first among equal scores; optionally only from its own fold."""
    truth = judged(judge, way)
    score = Cosine(gallery.image.pooled, gallery.text.pooled)
    ids = {"i2t": (gallery.image_id, gallery.text_id), "t2i": (gallery.text_id, gallery.image_id)}[way]
    fold_of_text = {text: place // 5000 for place, text in enumerate(caption_ids().tolist())}
    texts = torch.tensor([fold_of_text[i] for i in gallery.text_id.tolist()])
    images = torch.zeros(len(gallery.image_id), dtype=torch.int64).scatter_(0, gallery.own_image(), texts)
    folds = (images, texts) if way == "i2t" else (texts, images)
    known = set(ids[1].tolist())
    found = {}
    for rows in tiles(len(ids[0]), 500):
        scores = score(rows, slice(None)) if way == "i2t" else score(slice(None), rows).T
        bits = scores.contiguous().view(torch.int32).long()
        keys = 2 * (bits ^ ((bits >> 31) & 0x7FFFFFFF))  # whole numbers in the order of the scores
        for row, query in enumerate(ids[0][rows].tolist()):
            if query in truth:
                keys[row, torch.searchsorted(ids[1], torch.tensor([m for m in truth[query] if m in known]))] -= 1
        if within_fold:
            keys[folds[0][rows][:, None] != folds[1][None, :]] = torch.iinfo(torch.int64).min
        best = ids[1][keys.topk(50, dim=1).indices].tolist()
        found |= {query: best[row] for row, query in enumerate(ids[0][rows].tolist()) if query in truth}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "planted", "coarse"])
def test_metrics_equal_those_of_the_reference_package(kind):
    package = pytest.importorskip("eccv_caption", reason="the package with the judgments is not installed")
    gallery = planted(kind)
    ours = coco_recalls(gallery) | cxc_recalls(gallery) | eccv_metrics(gallery)
    theirs = package.Metrics()
    by_judge = {judge: {way: rankings(gallery, judge, way) for way in ("i2t", "t2i")} for judge in JUDGES}
    within = {way: rankings(gallery, "original", way, within_fold=True) for way in ("i2t", "t2i")}
    for k in (1, 5, 10):
        expected = {
            "coco1k": theirs.coco_1k_recalls(within, "all", K=k),
            "coco5k": theirs.coco_5k_recalls(by_judge["original"], "all", K=k),
            "cxc": theirs.cxc_recalls(by_judge["cxc"], "all", K=k),
        }
        for name, values in expected.items():
            for way, value in values.items():
                assert ours[f"{name}/{way}_r{k}"] == pytest.approx(100 * value, abs=1e-6), (name, way, k)
    for name, values in theirs.eccv_metrics(by_judge["eccv"], "all").items():
        key = {"eccv_map_at_r": "map_at_r", "eccv_rprecision": "r_precision", "eccv_r1": "r1"}[name]
        for way, value in values.items():
            assert ours[f"eccv/{way}_{key}"] == pytest.approx(100 * value, abs=1e-6), (name, way)


def test_only_the_captions_of_the_protocol_count():
    gallery = planted("planted")
    more = Gallery(
        gallery.image,
        gallery.image_id,
        pooled_only(torch.cat([gallery.text.pooled[:1], gallery.text.pooled])),
        torch.cat([torch.tensor([1]), gallery.text_id]),
        torch.cat([gallery.text_image_id[:1], gallery.text_image_id]),
    )
    assert torch.equal(standard(more).text.pooled, gallery.text.pooled)
    few = Gallery(gallery.image, gallery.image_id, gallery.text.rows(slice(9, None)), gallery.text_id[9:],
                  gallery.text_image_id[9:])  # fmt: skip
    with pytest.raises(UserError, match=r"9 of the 25,000 captions .* are missing, such as \d+; .*annotation ids"):
        standard(few)
