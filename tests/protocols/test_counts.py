"""The counts in each file of metrics are those of what was measured, with limits, duplicates and dropped samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from html_page import Page
from itr.cli import main
from itr.data.shards.schema import Manifest
from third_party import make_image, write_tar

FAST = ["--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
IMAGES, EACH = 6, 2  # different images, and samples with one caption of each


def one_sample_per_caption(folder: Path, **meta: Any) -> Path:
    """A tar as img2dataset writes it of a table with one row per caption; values of `meta` take the image's number."""
    members: dict[str, bytes] = {}
    images = [make_image(number, 32) for number in range(IMAGES)]
    for number in range(IMAGES * EACH):
        image = number // EACH
        text = {"caption": f"caption {number % EACH} of image {image}", "key": f"{number:08d}"}
        text |= {name: value(image) for name, value in meta.items()}
        members |= {f"{number:08d}.jpg": images[image], f"{number:08d}.json": json.dumps(text).encode()}
    return write_tar(folder / "test" / "00000.tar", members).parents[1]


def metrics_of(shards: Path, out: Path, checkpoint: str, *options: str) -> dict[str, Any]:
    where = [f"--data.root={shards}", f"--trainer.default_root_dir={out}", f"--ckpt_path={checkpoint}"]
    assert main(["test", *where, *FAST, *options]) == 0
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return found


def counts(data: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name not in ("split", "shards")}


def is_of(metrics: dict[str, Any], prefix: str, images: int, captions: int) -> bool:
    """Whether recalls and mean ranks are those of so many queries: parts of a whole number, and within the gallery."""
    for way, queries, candidates in (("i2t", images, captions), ("t2i", captions, images)):
        hits, ranks = metrics[f"{prefix}{way}_r1"] * queries / 100, metrics[f"{prefix}{way}_meanr"] * queries
        if abs(hits - round(hits)) > 1e-6 or abs(ranks - round(ranks)) > 1e-6 or ranks > queries * candidates:
            return False
    return True


SLOW = pytest.mark.slow  # the fast suite has the same cases without a run, in tests/evaluation/test_gallery.py


@pytest.mark.parametrize("ids", ["numbers", pytest.param("texts", marks=SLOW), pytest.param("none", marks=SLOW)])
def test_samples_of_one_image_are_one_image(tmp_path, plain_checkpoint, capsys, ids):
    meta: dict[str, Any] = {"numbers": {"image_id": lambda image: 1000 + image}, "none": {}}.get(
        ids, {"image_id": lambda image: f"COCO_{image}"}
    )
    metrics = metrics_of(one_sample_per_caption(tmp_path / "wild", **meta), tmp_path / "run", plain_checkpoint)
    assert counts(metrics["about"]["data"]) == {"images": 6, "captions": 12, "merged_samples": 6}
    assert is_of(metrics, "test/", 6, 12)
    shown = capsys.readouterr()
    assert "6 images, 12 captions;" in shown.out
    assert "6 samples have an image equal to that of another sample" in shown.err


def test_a_limit_of_the_trainer_is_counted(tmp_path, plain_checkpoint, capsys):
    shards = one_sample_per_caption(tmp_path / "wild")
    limits = ["--trainer.limit_test_batches=3", "--data.eval_batch_size=3"]
    metrics = metrics_of(shards, tmp_path / "run", plain_checkpoint, *limits)
    expected = {"images": 5, "captions": 9, "merged_samples": 4, "in_split": {"images": 12, "captions": 12}}
    assert counts(metrics["about"]["data"]) == expected
    assert is_of(metrics, "test/", 5, 9)
    assert "only a part of the split was measured: 9 of 12 samples, and 9 of 12 captions" in capsys.readouterr().err


@SLOW
def test_captions_that_the_protocol_leaves_out_are_not_counted(tmp_path, plain_checkpoint):
    members: dict[str, bytes] = {}
    for number in range(3):
        text = {"captions": ["a", "b", f"c {number}"], "standard": 2}
        members |= {f"{number}.jpg": make_image(number, 32), f"{number}.json": json.dumps(text).encode()}
    write_tar(tmp_path / "wild" / "test" / "0.tar", members)
    metrics = metrics_of(tmp_path / "wild", tmp_path / "run", plain_checkpoint)
    assert counts(metrics["about"]["data"]) == {
        "images": 3, "captions": 6, "in_split": {"images": 3, "captions": 9},
    }  # fmt: skip


@SLOW
@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"image_id": lambda image: image % 2}, "image_id 0 belongs to different images"),
        ({"caption_ids": lambda image: [0]}, "caption_id 0 belongs to different captions"),
    ],
)
def test_ids_of_different_images_or_captions_are_refused(tmp_path, plain_checkpoint, capsys, meta, message):
    shards = one_sample_per_caption(tmp_path / "wild", **meta)
    where = [f"--data.root={shards}", f"--trainer.default_root_dir={tmp_path}", f"--ckpt_path={plain_checkpoint}"]
    assert main(["test", *where, *FAST]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "metrics.json").exists()


@SLOW
def test_no_sample_is_dropped(tmp_path, plain_checkpoint, capsys):
    members = {"0.jpg": make_image(0), "0.txt": b"a", "1.jpg": b"no image", "1.txt": b"b"}
    write_tar(tmp_path / "wild" / "test" / "0.tar", members)
    where = [f"--data.root={tmp_path / 'wild'}", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["test", *where, *FAST, f"--ckpt_path={plain_checkpoint}"]) == 1
    assert "Skipping it would change the metrics" in capsys.readouterr().err
    assert not (tmp_path / "metrics.json").exists()


def test_transfer_counts_each_data_set(tmp_path, scenes, plain_checkpoint, capsys):
    wild = one_sample_per_caption(tmp_path / "wild")
    options = [
        "--ckpt_path",
        plain_checkpoint,
        "--num_workers",
        "0",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "t.json"),
    ]
    assert main(["evaluate", "transfer", *options, "--data", str(scenes), "--further", f"[{wild}]"]) == 0
    metrics = json.loads((tmp_path / "t.json").read_text())
    split = Manifest.read(scenes).splits["test"]
    data = {name: counts(found) for name, found in metrics["about"]["data"].items()}
    assert data == {
        scenes.name: {"images": split.images, "captions": split.captions},
        "wild": {"images": 6, "captions": 12, "merged_samples": 6},
    }
    assert is_of(metrics, f"transfer/{scenes.name}/", split.images, split.captions)
    assert is_of(metrics, "transfer/wild/", 6, 12)
    assert "wild: 6 samples have an image equal" in capsys.readouterr().out


@SLOW
def test_files_of_embeddings_keep_what_they_know_of_equal_images(tmp_path, plain_checkpoint):
    wild = one_sample_per_caption(tmp_path / "wild")
    options = ["--ckpt_path", plain_checkpoint, "--num_workers", "0", "--device", "cpu"]
    assert main(["embed", *options, "--data", str(wild), "--out", str(tmp_path / "e.npz")]) == 0
    with np.load(tmp_path / "e.npz") as arrays:
        assert len(arrays["image_id"]) == 12
        assert len(set(arrays["image_same_as"].tolist())) == 6
    other = one_sample_per_caption(tmp_path / "other", image_id=lambda image: image)
    assert main(["embed", *options, "--data", str(other), "--out", str(tmp_path / "f.npz")]) == 0
    with np.load(tmp_path / "f.npz") as arrays:
        assert arrays["image_id"].tolist() == list(range(6))
        assert int(arrays["num_samples"]) == len(arrays["caption_id"]) == 12


@pytest.mark.slow
@pytest.mark.parametrize("ids", [pytest.param(True, marks=SLOW), False])
def test_the_report_counts_what_it_measures(tmp_path, plain_checkpoint, ids):
    wild = one_sample_per_caption(tmp_path / "wild", **({"image_id": lambda image: image} if ids else {}))
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "best.ckpt").symlink_to(plain_checkpoint)
    for _ in range(2):  # the second time from the stored embeddings
        assert main(["report", str(run), "--data", str(wild), "--device", "cpu"]) == 0
        page = Page(run / "report" / "index.html")
        assert next(row for row in page.rows if row[0] == "measured")[1] == "6 images, 12 captions"
        assert "6 samples have an image equal to that of another sample" in page.text
        assert page.all("img")
