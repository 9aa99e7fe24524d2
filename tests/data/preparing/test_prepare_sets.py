"""`itr prepare` on the data sets of the papers, from raw files to shards, training and testing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from itr.cli import main
from itr.data.shards.schema import Manifest, Sample
from itr.data.shards.tars import read_tar
from raw_trees import collapsed, make_image, write_ele_fashion, write_json, write_magb, write_official
from tiny import TINY_CLIP

FAST = ["--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def prepare(source: str, root: Path, out: Path, *options: str) -> Manifest:
    arguments = ["prepare", source, "--root", str(root), "--out", str(out), "--num_workers", "1", *options]
    assert main(arguments) == 0
    return Manifest.read(out)


def samples(folder: Path, split: str) -> list[Sample]:
    return [s for shard in Manifest.read(folder).splits[split].shards for s in read_tar(folder / shard.path)]


def fit_and_test(shards: Path, folder: Path) -> dict[str, float]:
    where = [f"--data.root={shards}", f"--trainer.default_root_dir={folder}", *FAST]
    assert main(["fit", *where, *TINY_CLIP, "--trainer.max_epochs=1", "--data.batch_size=4"]) == 0
    assert main(["test", *where, "--ckpt_path=best"]) == 0
    return json.loads((folder / "metrics.json").read_text())


def camoit(root: Path) -> Path:
    for split, numbers in (("train", range(20)), ("test", range(20, 26))):
        rows = [{"name": f"{i}.jpg", "caption3": f"a hidden frog {i}"} for i in numbers]
        write_json(root / "CamoIT" / f"{split}.json", rows)
        for i in numbers:
            make_image(root / "CamoIT" / "images" / f"{i}.jpg")
    return root


@pytest.mark.slow
def test_camoit_from_raw_files_to_metrics(tmp_path):
    manifest = prepare("camoit", camoit(tmp_path / "raw"), tmp_path / "shards", "--holdout_val", "0.2")
    assert {name: split.images for name, split in manifest.splits.items()} == {"train": 16, "val": 4, "test": 6}
    assert "test/rsum" in fit_and_test(tmp_path / "shards", tmp_path / "run")


MAGB = [
    ("movies", "Movies", "Movies"), ("toys", "Toys", "Toys"), ("grocery", "Grocery", "Grocery"),
    ("reddit-s", "Reddit-S", "RedditS"), ("reddit-m", "Reddit-M", "RedditM"), ("ele-fashion", "", ""),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "folder", "stem"), MAGB)
def test_graphs_from_raw_files_to_metrics(tmp_path, name, folder, stem):
    raw = tmp_path / "raw"
    raw = write_magb(raw, folder, stem, 30, missing=(4,)) if stem else write_ele_fashion(raw, 30, missing=(4,))
    manifest = prepare("mag", raw, tmp_path / "shards", "--name", name)
    assert sum(split.images for split in manifest.splits.values()) == 29
    assert {sample.meta["node"] for split in manifest.splits for sample in samples(tmp_path / "shards", split)} == {
        node for node in range(30) if node != 4
    }
    assert "test/rsum" in fit_and_test(tmp_path / "shards", tmp_path / "run")
    all_nodes = prepare("mag", raw, tmp_path / "all", "--name", name, "--split", "all")
    assert {name: split.images for name, split in all_nodes.splits.items()} == {"all": 29}


@pytest.mark.slow
def test_all_nodes_can_be_ranked_in_a_separate_split(tmp_path):
    raw = write_magb(tmp_path / "raw", "Movies", "Movies", 30)
    prepare("mag", raw, tmp_path / "shards", "--name", "movies")
    prepare("mag", raw, tmp_path / "all", "--name", "movies", "--split", "all")
    fit_and_test(tmp_path / "shards", tmp_path / "run")
    where = [
        f"--data.root={tmp_path / 'all'}",
        "--data.test_split=all",
        f"--trainer.default_root_dir={tmp_path}/all_run",
    ]
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert main(["test", *where, *FAST, f"--ckpt_path={best}"]) == 0
    assert (tmp_path / "all_run" / "metrics.json").is_file()


def rows_of(folder: Path) -> dict[str, dict[str, list[str]]]:
    """The captions of each image of a sample, by split and file name."""
    return {
        split: {
            Path(row["image"]).name: [collapsed(text) for text in row["captions"]]
            for row in map(json.loads, (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines())
        }
        for split in ("train", "val")
    }


@pytest.mark.slow
def test_real_flickr30k_captions_with_a_sample_of_the_real_images(shared, tmp_path, capsys):
    captions, sample = shared / "data" / "captions" / "f30k", shared / "data" / "flickr30k-sample"
    options = ("--image_root", str(sample), "--bad_images", "skip")
    manifest = prepare("flickr30k", captions, tmp_path / "shards", *options)
    assert {name: (s.images, s.captions) for name, s in manifest.splits.items()} == {
        "train": (6993, 34965), "val": (242, 1210),
    }  # fmt: skip
    names = json.loads((captions / "id_mapping.json").read_text())
    for split, file in (("train", "train"), ("val", "dev")):
        texts = (captions / f"{file}_caps.txt").read_text(encoding="utf-8").split("\n")
        ids = (captions / f"{file}_ids.txt").read_text().split()
        expected: dict[str, list[str]] = {}
        for i, text in enumerate(texts[:-1]):
            expected.setdefault(names[ids[i if len(ids) == len(texts) - 1 else i // 5]], []).append(collapsed(text))
        for found in samples(tmp_path / "shards", split):
            assert found.captions == expected[Path(found.name).name]
            assert found.image == (sample / found.name).read_bytes()


@pytest.mark.slow
def test_coco_built_from_the_real_sample_can_be_trained_on(shared, tmp_path):
    sample, raw = shared / "data" / "coco-sample", tmp_path / "raw"
    expected = rows_of(sample)
    for part, found in expected.items():
        images = {
            int(name[-16:-4]): (name, {int(name[-16:-4]) * 10 + i: text for i, text in enumerate(texts)})
            for name, texts in found.items()
        }  # fmt: skip
        write_official(raw / "annotations" / f"captions_{part}2014.json", images)
    manifest = prepare("coco", raw, tmp_path / "shards", "--image_root", str(sample))
    assert {name: split.images for name, split in manifest.splits.items()} == {"train": 600, "val": 201}
    for split, texts in expected.items():
        found = {Path(s.name).name: s for s in samples(tmp_path / "shards", split)}
        assert {name: s.captions for name, s in found.items()} == texts
        assert all(s.image == (sample / "images" / name).read_bytes() for name, s in found.items())
    shards = f"--data.root={tmp_path / 'shards'}"
    options = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=3", "--data.batch_size=8"]
    assert main(["fit", shards, f"--trainer.default_root_dir={tmp_path / 'run'}", *FAST, *TINY_CLIP, *options]) == 0
