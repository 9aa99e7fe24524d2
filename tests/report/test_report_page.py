"""`itr report` from the command line: pages of complete, damaged and incomplete runs."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import itr.embedding.shards
from html_page import Page
from itr.cli import main
from itr.data.shards.writer import Record, write_split


def report(*arguments: str | Path) -> Page:
    """Run the command and parse the page that it writes."""
    words = [str(argument) for argument in arguments]
    assert main(["report", *words, "--device", "cpu"]) == 0
    return Page(Path(words[words.index("--out") + 1]) if "--out" in words else Path(words[0]) / "report/index.html")


@pytest.fixture(scope="module")
def original_shown_run(trained_run, tmp_path_factory) -> Path:
    folder = Path(shutil.copytree(trained_run, tmp_path_factory.mktemp("shown") / "run"))
    report(folder)
    return folder


@pytest.fixture
def shown_run(original_shown_run, tmp_path) -> Path:
    """A copy of the trained run with its page and cached embeddings, which a test may change."""
    return Path(shutil.copytree(original_shown_run, tmp_path / "run"))


def sections(page: Page) -> list[str | None]:
    return [attributes.get("id") for attributes in page.all("section")]


@pytest.mark.slow
def test_the_page_of_one_run_is_complete(run):
    page = report(run)
    assert sections(page) == ["run", "recall", "ranks", "views", "capacity", "training", "gallery"]
    metrics = json.loads((run / "metrics.json").read_text())
    row = next(row for row in page.rows if row[0] == "run" and len(row) > 10)
    names = [f"test/{way}_{name}" for way in ("i2t", "t2i") for name in ("r1", "r5", "r10", "medr", "meanr")]
    names += ["test/rsum", "test/all/i2t_map_at_r", "test/all/t2i_map_at_r"]
    assert row[1:] == [f"{metrics[name]:.1f}" for name in names]
    assert "measured for this page" not in page.text  # the checkpoint reproduces metrics.json
    for words in (
        "demo.yaml",
        "data.batch_size is 8 instead of 128",
        "VSE: vit from scratch",
        "InfoNCE",
        "Learning rate",
        "mean cosine",
        "best.ckpt, BLAKE2b ",
    ):
        assert words in page.text
    assert (run / "config.yaml").read_text() in page.text
    assert "Notes on this page" not in page.text


def test_a_page_makes_no_requests_and_its_images_decode(shown_run):
    page = report(shown_run)
    assert page.loads()
    assert all(value.startswith(("#", "data:image/jpeg;base64,")) for value in page.loads())
    assert "url(" not in page.source
    assert "@import" not in page.source
    assert not page.all("script")
    assert not page.all("link")
    images = page.all("img")
    assert len(images) > 20
    for attributes in images:
        data = base64.b64decode((attributes["src"] or "").partition(",")[2], validate=True)
        assert max(Image.open(io.BytesIO(data)).convert("RGB").size) <= 160
        assert attributes["alt"]
    assert all(attributes.get("aria-label") for attributes in page.all("svg") if attributes.get("role") == "img")
    assert all(attributes.get("scope") for attributes in page.all("th"))
    assert [name for name, _ in page.elements if name in ("h1", "h2", "h3", "h4")][:2] == ["h1", "h2"]


@pytest.mark.slow
def test_runs_side_by_side(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    page = report(run, other, "--out", tmp_path / "two.html")
    assert "difference" in sections(page)
    row = next(row for row in page.rows if row[0].strip() == "other" and "p = " in row[1])
    assert all("p = 1.000" in cell and "+0.0 to +0.0" in cell for cell in row[1:])
    assert page.text.count("Complete config of") == 2
    assert (other / "report" / "embeddings-test.npz").is_file()


@pytest.mark.slow
def test_embeddings_are_computed_once(run, monkeypatch):
    embed, calls = itr.embedding.shards.embed_shards, []

    def counted(*arguments: object, **options: object) -> object:
        calls.append(arguments)
        return embed(*arguments, **options)

    monkeypatch.setattr(itr.embedding.shards, "embed_shards", counted)
    first = report(run)
    assert report(run).source == first.source
    assert len(calls) == 1
    checkpoint = run / "checkpoints" / "best.ckpt"
    torch.save(torch.load(checkpoint, weights_only=True) | {"note": "other bytes"}, checkpoint)
    report(run)
    assert len(calls) == 2


@pytest.mark.slow
def test_precomputed_embeddings_give_the_same_page(run, scenes, tmp_path):
    file = tmp_path / "embeddings.npz"
    checkpoint = run / "checkpoints" / "best.ckpt"
    options = ["--data", str(scenes), "--num_workers", "0", "--device", "cpu", "--out", str(file)]
    assert main(["embed", "--ckpt_path", str(checkpoint), *options]) == 0
    first = report(run)
    with np.load(file) as arrays:
        order = np.random.default_rng(0).permutation(len(arrays["text"]))
        kept = {name: arrays[name][order] if name.startswith(("text", "caption")) else arrays[name] for name in arrays}
    np.savez(file, **kept)
    assert report(run, "--embeddings", file).rows == first.rows


def test_captions_are_escaped(tmp_path):
    """User-defined shards, in which only annotated pairs are known to match."""
    captions = ["<script>alert(1)</script> & \"quoted\" 'too'", "</style><img src=https://a.example/x.png>", "كلب أحمر"]
    records = []
    for number in range(12):
        stream = io.BytesIO()
        Image.new("RGB", (300, 20), (20 * number, 90, 10)).save(stream, "PNG")
        records.append(Record(stream.getvalue(), "png", [f"{caption} {number}" for caption in captions], str(number)))
    write_split(records, tmp_path / "shards", "test", 100)
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.json").write_text('{"test/<b>": 1.0, "about": {"seed": "</pre><script>"}}')
    rng = np.random.default_rng(0)
    ids = {"image_id": np.arange(12), "caption_id": np.arange(36), "caption_image_id": np.repeat(np.arange(12), 3)}
    np.savez(tmp_path / "e.npz", image=rng.normal(size=(12, 8)), text=rng.normal(size=(36, 8)), **ids)
    page = report(run, "--data", tmp_path / "shards", "--embeddings", tmp_path / "e.npz")
    assert not page.all("script")
    assert all(value.startswith(("#", "data:image/jpeg;base64,")) for value in page.loads())
    assert captions[0] in page.text
    assert captions[1] in "".join(a["alt"] or "" for a in page.all("img")) + page.text
    assert "كلب" in page.text
    assert "test/<b>" in page.text
    assert '"seed": "</pre><script>"' in page.text
    assert "do not list the true matches beyond the annotated pairs" in page.text
    assert any(attributes.get("dir") == "auto" for attributes in page.all("p"))


def test_moved_shards_are_reported_and_found_with_data(shown_run, scenes, tmp_path):
    config = (shown_run / "config.yaml").read_text().replace(str(scenes), str(tmp_path / "gone"))
    (shown_run / "config.yaml").write_text(config)
    page = report(shown_run)
    assert sections(page) == ["run", "recall", "training"]
    assert "No images" in page.text
    assert "give their folder with --data" in page.text
    assert "gallery" in sections(report(shown_run, "--data", scenes))


def test_embeddings_of_other_data_are_shown_without_its_images(run, tmp_path):
    rng = np.random.default_rng(0)
    ids = {"image_id": np.arange(5), "caption_id": np.arange(9), "caption_image_id": np.arange(9) % 4}
    np.savez(tmp_path / "e.npz", image=rng.normal(size=(5, 8)), text=rng.normal(size=(9, 8)), **ids)
    page = report(run, "--embeddings", tmp_path / "e.npz")
    assert "which does not match" in page.text
    assert not page.all("img")
    assert "gallery" in sections(page)


def damage(run: Path, name: str) -> None:
    (run / name).write_text("{[ no")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["checkpoints"], "checkpoints/ contains no checkpoint"),
        (["metrics.json"], "metrics.json is missing"),
        (["logs"], "No training curves"),
        (["config.yaml", "logs", "metrics.json"], "config.yaml is missing"),
    ],
)
def test_a_page_names_missing_files(shown_run, scenes, names, message):
    for name in names:
        path = shown_run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert message in report(shown_run, "--data", scenes).text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.yaml", "metrics.json", "checkpoints/best.ckpt", "report/embeddings-test.npz"])
def test_a_page_survives_damaged_files(shown_run, scenes, name):
    damage(shown_run, name)
    page = report(shown_run, "--data", scenes)
    messages = ("ould not read", "is not a checkpoint", "is not valid YAML")
    reported = any(message in page.text for message in messages)
    assert reported == (not name.startswith("report"))


@pytest.mark.slow
def test_wrong_arguments_are_reported(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "half.npz", image=np.ones((2, 3)))
    ids = {"image_id": np.arange(2), "caption_id": np.arange(2), "caption_image_id": np.arange(2)}
    good = {"image": np.ones((2, 3)), "text": np.ones((2, 3)), **ids}
    for name, change in {
        "nan": {"text": np.array([[1, np.nan, 1], [1, 1, 1]])},
        "zero": {"image": np.array([[0.0, 0, 0], [1, 1, 1]])},
        "twice": {"caption_id": np.zeros(2, dtype=int)},
        "orphan": {"caption_image_id": np.array([0, 7])},
    }.items():
        np.savez(tmp_path / f"{name}.npz", **{**good, **change})
    for arguments, message in [
        ([tmp_path / "nowhere"], "nowhere does not exist"),
        ([run / "config.yaml"], "config.yaml does not exist"),
        ([tmp_path / "empty"], "is not a run folder"),
        ([run, run], "given twice"),
        ([run, "--out", "a.pdf"], "ends in .html"),
        ([run, "--pictures", "-1"], "0 or more"),
        ([run, "--data", tmp_path / "nowhere"], "the shard folder"),
        ([run, "--embeddings", "a", "b"], "2 files for 1 run"),
        ([run, "--embeddings", tmp_path / "nowhere.npz"], "nowhere.npz does not exist"),
        ([run, "--embeddings", tmp_path / "half.npz"], "lacks text, image_id"),
        ([run, "--embeddings", tmp_path / "nan.npz"], "is not finite (1 such rows)"),
        ([run, "--embeddings", tmp_path / "zero.npz"], "is zero (1 such rows)"),
        ([run, "--embeddings", tmp_path / "twice.npz"], "appears twice (1 such ids)"),
        ([run, "--embeddings", tmp_path / "orphan.npz"], "images that are not in the gallery"),
    ]:
        assert main(["report", *map(str, arguments)]) == 1
        assert message in capsys.readouterr().err


def test_the_help_lists_the_options(capsys):
    with pytest.raises(SystemExit):
        main(["report", "--help"])
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--out", "--split", "--data", "--embeddings", "--pictures"))
