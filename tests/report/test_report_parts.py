"""The numbers behind the page against plain loops, and the files that it reads against what was written."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from itr.cli import main
from itr.commands.configs import config_folder, made_with
from itr.data.shards.positives import Positives
from itr.embedding.files import gallery_of
from itr.errors import UserError
from itr.evaluation.cosine import Cosine
from itr.evaluation.gallery import Gallery
from itr.evaluation.ranks import Matches as TrueMatches
from itr.evaluation.ranks import rank
from itr.evaluation.scoring import mean_scores
from itr.report.content.choose import KINDS
from itr.report.content.compare import recall_sums_by_image
from itr.report.content.entry import RunEntry
from itr.report.content.matches import PairJudge
from itr.report.content.measure import Measured, measure
from itr.report.content.published import changed_settings, published_results
from itr.report.content.runs import Run, read_history, read_run, run_names
from itr.report.content.samples import Samples
from itr.report.page.curves import distribution, recall_curve
from itr.report.page.page import report_page
from itr.report.page.plots import Line, axis, plot, thinned


def as_gallery(arrays: dict[str, np.ndarray]) -> Gallery:
    return gallery_of({name: torch.from_numpy(array) for name, array in arrays.items()}, "synthetic")


@pytest.fixture
def gallery() -> Gallery:
    """30 images, the last without a caption, and 70 captions, a varying number per image; matches score imperfectly."""
    rng = np.random.default_rng(0)
    image, own = rng.normal(size=(30, 6)), np.sort(rng.integers(29, size=70))
    text = image[own] + 1.4 * rng.normal(size=(70, 6))
    ids = {"image_id": np.arange(30) * 3, "caption_id": np.arange(70) * 2, "caption_image_id": own * 3}
    return as_gallery({"image": image, "text": text, **ids})


@pytest.fixture
def positives(gallery) -> Positives:
    """The annotated pairs, and every fourth other pair."""
    own = gallery.own_image().tolist()
    pairs = [(i, c) for i in range(30) for c in range(70) if own[c] == i or (i * 70 + c) % 4 == 0]
    return Positives.from_pairs(*(np.array(side) for side in zip(*[(3 * i, 2 * c) for i, c in pairs], strict=True)))


def measured(gallery: Gallery, positives: Positives | None) -> Measured:
    return measure(gallery, positives, 9, torch.device("cpu"))


@pytest.mark.parametrize(("scorers", "expected"), [
    (["cosine", "cosine"], "Scores are cosine similarities."),
    (["my.Model, weights 1f"] * 2, "Pairs are scored by my.Model, weights 1f."),
    (["cosine", "my.Model, weights 1f"], "Pairs are scored by cosine (run 0); my.Model, weights 1f (run 1)."),
])  # fmt: skip
def test_the_page_says_how_pairs_are_scored(gallery, scorers, expected):
    found = measured(gallery, None)
    image_ids, captions = (
        gallery.image_id.tolist(),
        {caption_id: "a caption" for caption_id in gallery.text_id.tolist()},
    )
    samples = Samples(dict.fromkeys(image_ids, ""), {image_id: ["a caption"] for image_id in image_ids}, captions)
    entries = [
        RunEntry(Run(Path(), f"run {number}"), measured=replace(found, scored_by=name), samples=samples)
        for number, name in enumerate(scorers)
    ]
    page = report_page(entries, "test")
    assert expected in page
    assert ("cosine similarities" in page) == (set(scorers) == {"cosine"})


@pytest.mark.parametrize("known", [True, False])
def test_the_gallery_shows_correct_hits_and_verdicts(gallery, positives, known):
    found = measured(gallery, positives if known else None)
    own, score = gallery.own_image().tolist(), Cosine(gallery.image.pooled, gallery.text.pooled)
    scores = score(slice(0, 30), slice(0, 70))
    truth = positives.mask(gallery.image_id, gallery.text_id)
    assert {query.kind for query in found.queries} == set(KINDS)
    assert all(sum(q.kind == kind and q.way == "t2i" for q in found.queries) <= 3 for kind in KINDS)
    for query in found.queries:
        row = scores[query.row] if query.way == "i2t" else scores[:, query.row]
        best = sorted(range(len(row)), key=lambda i, row=row: -float(row[i]))[:5]
        assert [hit.row for hit in query.hits] == best
        for hit in query.hits:
            assert hit.score == pytest.approx(float(row[hit.row]))
            image, caption = (query.row, hit.row) if query.way == "i2t" else (hit.row, query.row)
            assert (hit.verdict == "own") == (own[caption] == image)
            if known and hit.verdict != "own":
                assert hit.verdict == ("match" if truth[image, caption] else "wrong")
        assert (query.kind == "success") == (query.rank == 0) == (query.hits[0].verdict == "own")
        assert (query.kind == "false negative") == (query.hits[0].verdict in ("match", "likely"))


@pytest.mark.parametrize("way", ["i2t", "t2i"])
def test_the_percentage_of_false_negatives_against_a_loop(gallery, positives, way):
    found, own = measured(gallery, positives), gallery.own_image().tolist()
    scores = Cosine(gallery.image.pooled, gallery.text.pooled)(slice(0, 30), slice(0, 70))
    truth = positives.mask(gallery.image_id, gallery.text_id)
    failures = missed = 0
    for query in range(70) if way == "t2i" else sorted(set(own)):
        row = scores[:, query] if way == "t2i" else scores[query]
        first = int(row.argmax())
        image, caption = (first, query) if way == "t2i" else (query, first)
        failures += own[caption] != image
        missed += own[caption] != image and bool(truth[image, caption])
    assert 0 < missed < failures
    assert found.missed[way] == pytest.approx(100 * missed / failures)


def test_caption_similarity_against_a_loop(gallery):
    judge, own = PairJudge(gallery, None), gallery.own_image().tolist()
    text = torch.nn.functional.normalize(gallery.text.pooled, dim=1)
    pairs = [(caption, image) for caption in range(70) for image in range(30)]
    found = judge.similarity(*(torch.tensor(side) for side in zip(*pairs, strict=True))).tolist()
    loop = []
    for caption, row in pairs:
        others = [other for other in range(70) if own[other] == row and other != caption]
        loop.append(max((float(text[caption] @ text[other]) for other in others), default=-1))
    assert found == pytest.approx(loop, abs=1e-5)
    unmatched = [value for (c, i), value in zip(pairs, loop, strict=True) if own[c] != i and value > -1]
    assert judge.threshold == pytest.approx(np.quantile(unmatched, 0.999), abs=0.03)
    assert judge.evidence(torch.tensor([0]), torch.tensor([1])).item() == pytest.approx(loop[1] - judge.threshold)


def test_one_caption_per_image_is_enough():
    rng = np.random.default_rng(1)
    ids = {name: np.arange(8) for name in ("image_id", "caption_id", "caption_image_id")}
    rows = rng.normal(size=(8, 4))
    gallery = as_gallery({"image": rows, "text": rows, **ids})
    assert -1 < PairJudge(gallery, None).threshold <= 1
    assert measured(gallery, None).figures["rsum"] == 600


def test_sums_by_image_add_up_to_the_recalls(gallery):
    found = measured(gallery, None)
    sums, counts = recall_sums_by_image(found)
    names = [f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]
    assert (sums.sum(0) / counts.sum(0)).tolist() == pytest.approx([found.figures[name] for name in names])


def test_recall_by_k_and_distribution_against_loops(gallery):
    score = Cosine(gallery.image.pooled, gallery.text.pooled)
    ranks = rank(score, TrueMatches.own(gallery.own_image(), 30)).text_to_image
    curve = recall_curve(ranks, 30)
    assert curve == [(k, pytest.approx(100 * sum(r < k for r in ranks.tolist()) / 70)) for k in range(1, 31)]
    assert curve[-1][1] == 100
    outline = distribution(ranks, 30)
    bins = [(1, 2), (2, 4), (4, 8), (8, 16), (16, 30)]
    shares = [100 * sum(low <= r + 1 < high + (high == 30) for r in ranks.tolist()) / 70 for low, high in bins]
    assert [x for x, _ in outline] == [edge for pair in bins for edge in pair]
    assert [y for _, y in outline] == pytest.approx([share for share in shares for _ in range(2)])


def test_mean_scores_against_a_loop(gallery):
    own = gallery.own_image().tolist()
    cosines = Cosine(gallery.image.pooled, gallery.text.pooled)(slice(0, 30), slice(0, 70))
    matched = [float(cosines[i, c]) for c in range(70) for i in range(30) if own[c] == i]
    others = [float(cosines[i, c]) for c in range(70) for i in range(30) if own[c] != i]
    assert mean_scores(gallery.score(), gallery.own_image()) == pytest.approx(
        (sum(matched) / 70, sum(others) / len(others)), abs=1e-6
    )


def test_plots_contain_their_points_and_escape_names():
    drawn = plot("a & b", "step", "value", [Line("<i>", [(0, 1.0), (5, float("nan")), (10, 3.0)]), Line("x", [])])
    assert "<i>" not in drawn
    assert "a &amp; b" in drawn
    assert drawn.count("<circle") == 2
    assert plot("none", "x", "y", [Line("a", [])]) == ""
    for values in ([5.0], [0.0, 0.0], [-3.0, 1e-3], [1e-7, 2e-7], [0.0, 1e6]):
        made = axis("x", values, False)
        assert made.low <= min(values) <= max(values) <= made.high
        assert 2 <= len(made.ticks) <= 11
    long = [(float(i), float(i % 7)) for i in range(10_000)]
    assert len(thinned(long)) <= 300
    assert sum(y for _, y in thinned(long)) / len(thinned(long)) == pytest.approx(3, abs=0.05)


def log(folder: Path, version: int, rows: list[str]) -> Path:
    path = folder / f"version_{version}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(["epoch,step,train/loss,val/rsum", *rows]) + "\n")
    return path


def test_logs_of_a_resumed_run_are_one_history(tmp_path):
    first = log(tmp_path, 0, ["0,9,3.0,", "0,9,,100", "1,19,2.5,", "1,19,,nan"])
    second = log(tmp_path, 1, ["1,15,2.0,", "1,25,1.5,"])
    found = read_history([first, second])
    assert found == {"train/loss": [(9, 3.0), (15, 2.0), (25, 1.5)], "val/rsum": [(9, 100)]}
    restarted = log(tmp_path, 2, ["0,4,9.0,"])
    assert read_history([first, second, restarted]) == {"train/loss": [(4, 9.0)]}


def test_run_names_are_distinct():
    assert run_names([Path("/a/baseline"), Path("/a/cusa")]) == ["baseline", "cusa"]
    assert run_names([Path("/a/cusa/0"), Path("/a/d2s/0")]) == ["cusa/0", "d2s/0"]
    with pytest.raises(UserError, match="twice"):
        run_names([Path("/a"), Path("/a/../a")])


@pytest.mark.slow
def test_published_results_agree_with_the_comments_in_the_configs():
    number = r"([\d.]+)"
    three = rf"{number} / {number} / {number}"
    num_compared = 0
    for path in config_folder().glob("*.yaml"):
        text = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
        comment = re.search(rf"image to text R@1/5/10 {three}, text to image {three}, rsum {number}[;.]", text)
        found = published_results(path.stem)
        assert (comment is None) == (found is None), path
        if comment and found:
            num_compared += 1
            assert [float(value.rstrip(".")) for value in comment.groups()] == list(found.figures.values()), path
            total = sum(value for name, value in found.figures.items() if name != "rsum")
            assert total == pytest.approx(found.figures["rsum"], abs=0.21), path
    assert num_compared == 22


@pytest.mark.slow
def test_a_run_records_its_config_and_curves(trained_run):
    run = read_run(trained_run, "it")
    assert run.config_name == made_with(str(trained_run / "config.yaml")).removesuffix(".yaml") == "demo"
    assert len(run.history["train/lr"]) == len(run.history["train/loss"]) > 5
    assert len(run.history["val/similarity_matched"]) == len(run.history["val/rsum"]) == 2
    assert run.checkpoint == trained_run / "checkpoints" / "best.ckpt"


@pytest.mark.slow
def test_a_run_made_with_the_config_of_another_run_keeps_the_config_name(trained_run, tmp_path):
    options = ["--trainer.max_epochs=1", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", "--config", str(trained_run / "config.yaml"), *options]) == 0
    assert read_run(tmp_path, "it").config_name == "demo"


def test_changes_to_a_shipped_config_are_listed():
    whole = yaml.safe_load((config_folder() / "f30k_vse.yaml").read_text())
    whole["data"] = {**yaml.safe_load((config_folder() / "data" / "f30k.yaml").read_text()), "root": "elsewhere"}
    whole["model"]["backbone"] = yaml.safe_load((config_folder() / "backbone" / "vit_bert.yaml").read_text())
    whole["model"]["objective"]["class_path"] = "itr.objectives.Triplet"
    run = Run(Path(), "it", whole, config_name="f30k_vse")
    assert changed_settings(run) == []
    whole["model"]["objective"]["init_args"]["margin"] = 0.3
    assert changed_settings(run) == ["model.objective.init_args.margin is 0.3 instead of 0.2"]
    assert changed_settings(Run(Path(), "it", whole, config_name="mine")) is None


def test_one_image_with_one_caption_is_enough():
    ids = {name: np.array([7]) for name in ("image_id", "caption_id", "caption_image_id")}
    found = measured(as_gallery({"image": np.ones((1, 3)), "text": np.ones((1, 3)), **ids}), None)
    assert found.figures["rsum"] == 600
    assert found.missed == {"i2t": 0, "t2i": 0}
    assert [query.kind for query in found.queries] == ["success", "success"]
    assert recall_curve(found.ranks["t2i"], 1) == [(1, 100)]
    assert plot("", "K", "percent", [Line("a", recall_curve(found.ranks["t2i"], 1))], log_x=True, zero=True)
