"""Whether the report says what each metrics file is of, and refuses a split that does not exist."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from html_page import Page
from itr.cli import main
from itr.data.shards.schema import Manifest
from third_party import downloaded


def report(run: Path, *options: object) -> Page:
    assert main(["report", str(run), "--device", "cpu", "--pictures", "0", *map(str, options)]) == 0
    return Page(run / "report" / "index.html")


def change_about(run: Path, part: str, **values: object) -> None:
    path = run / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["about"][part] |= values
    path.write_text(json.dumps(metrics))


@pytest.mark.slow
def test_metrics_have_the_name_of_the_split_that_was_measured(run):
    change_about(run, "data", split="val")
    page = report(run)
    assert "val: recall in percent" in page.source
    assert "test: recall in percent" in page.source  # what was measured for this page
    assert "run (measured for this page)" in page.source


@pytest.mark.slow
def test_metrics_of_another_checkpoint_or_other_shards_are_marked(run):
    change_about(run, "model", blake2b="0123456789" * 3 + "01", checkpoint="epoch3.ckpt")
    page = report(run)
    assert "run (of another checkpoint, epoch3.ckpt 01234567)" in page.source
    assert "metrics.json is of another checkpoint, epoch3.ckpt 01234567; the rest of this page is of best.ckpt" in (
        page.source
    )
    change_about(run, "data", shards="x" * 32)
    assert "epoch3.ckpt 01234567, of other shards" in report(run).source
    change_about(run, "model", checkpoint="none")
    assert "of random weights, of other shards" in report(run).source


@pytest.mark.slow
def test_metrics_of_a_part_of_the_split_are_marked(run):
    change_about(run, "data", images=5, in_split={"images": 17, "captions": 54})
    assert "run (of 5 of the 17 images of the split)" in report(run).source
    change_about(run, "data", images=10, merged_samples=7, in_split={"images": 17, "captions": 60})
    assert "images of the split)" not in report(run).source


def without_test(scenes: Path, folder: Path) -> Path:
    shutil.copytree(scenes, folder)
    manifest = Manifest.read(folder)
    del manifest.splits["test"]
    manifest.write(folder)
    return folder


@pytest.mark.slow
def test_a_split_that_does_not_exist_is_refused_with_the_right_advice(run, scenes, tmp_path, capsys):
    shards = without_test(scenes, tmp_path / "shards")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(scenes), str(shards)))
    for options in ([], ["--data", str(shards)]):
        assert main(["report", str(run), "--device", "cpu", *options]) == 1
        message = capsys.readouterr().err
        assert "has no split 'test' (it has: train, val); name another one" in message
        assert "--split val" in message
        assert "moved" not in message
    assert not (run / "report").exists()
    assert "13" in report(run, "--split", "val").text


@pytest.mark.slow
def test_tars_without_the_split_are_refused(run, scenes, tmp_path, capsys):
    downloaded(tmp_path / "tars" / "train", 1)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(scenes), str(tmp_path / "tars")))
    assert main(["report", str(run), "--device", "cpu"]) == 1
    assert "no shards match" in capsys.readouterr().err
    assert not (run / "report").exists()


@pytest.mark.slow
def test_the_page_counts_what_was_measured(run):
    page = report(run)
    assert next(row for row in page.rows if row[0] == "measured")[1].startswith("17 images, ")
