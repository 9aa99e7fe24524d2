"""Files beside the shards that change while a run reads them: dense captions, features of a teacher, true matches."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from itr.data.datamodule import ShardData
from itr.data.features.headers import FeaturePaths, Header
from itr.data.features.stored import FeatureFile
from itr.data.loading.dense_texts import FORMAT, DenseTexts
from itr.errors import UserError
from loaders import make_loader, small_backbone

CHANGED = "changed since the run began; start again"


@pytest.fixture
def dense(tmp_path) -> DenseTexts:
    (tmp_path / "train").mkdir()
    lines = [json.dumps({"image_id": number, "text": f"text {number}"}) + "\n" for number in range(3)]
    (tmp_path / "train" / "dense.jsonl").write_text("".join(lines))
    (tmp_path / "train" / "dense.json").write_text(json.dumps({"format": FORMAT, "rows": 3, "data": "x"}))
    found = DenseTexts.open(tmp_path, "train", "x")
    assert found is not None
    assert found.text(1) == "text 1"
    return found


def rewrite(path: Path, data: bytes) -> None:
    path.with_suffix(".new").write_bytes(data)
    path.with_suffix(".new").replace(path)


def test_dense_captions_that_are_written_again_are_refused(dense):
    rewrite(dense.path, dense.path.read_bytes().replace(b"text 1", b"else 1"))
    with pytest.raises(UserError, match=rf"dense.jsonl {CHANGED}"):
        dense.text(1)


def test_dense_captions_that_disappear_are_refused(dense):
    dense.path.unlink()
    with pytest.raises(UserError, match=rf"dense.jsonl {CHANGED}"):
        dense.text(1)


@pytest.mark.parametrize("name", ["rows", "ids"])
def test_features_that_are_computed_again_are_refused(tmp_path, name):
    paths = FeaturePaths(tmp_path, "train", "image")
    paths.rows.parent.mkdir()
    np.save(paths.rows, np.ones((3, 2), dtype=np.float16))
    np.save(paths.ids, np.arange(3))
    Header("made up", "image", 2, 3, "x").write(paths.header)
    file = FeatureFile.open(tmp_path, "train", "image", "x")
    assert file.rows([2, 0]).tolist() == [[1, 1], [1, 1]]
    path = getattr(paths, name)
    rewrite(path, path.read_bytes())
    with pytest.raises(UserError, match=rf"{path.name} {CHANGED}"):
        file.rows([2])


def test_true_matches_and_identity_are_those_of_the_start(scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "shards")
    data = ShardData(str(tmp_path / "shards"))
    data.found["test"] = data._find("test")
    before, pairs = data.identity("test"), data.positives("test")
    os.remove(tmp_path / "shards" / "test" / "positives.npz")
    manifest = tmp_path / "shards" / "manifest.json"
    text = json.loads(manifest.read_text())
    text["splits"]["test"]["shards"].pop()
    manifest.write_text(json.dumps(text))
    assert data.identity("test") == before
    assert data.positives("test") is pairs
    assert ShardData(str(tmp_path / "shards")).identity("test") != before


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_is_prepared_again_between_two_epochs_stops_the_run(scenes, tmp_path, workers):
    shutil.copytree(scenes, tmp_path / "shards")
    backbone = small_backbone()
    loader = make_loader(tmp_path / "shards", "train", backbone, True, workers=workers)
    assert len(list(loader)) == 11
    tar = tmp_path / "shards" / "train" / "000002.tar"
    data = tar.read_bytes()
    rewrite(tar, data)  # the same content again
    assert len(list(loader)) == 11
    middle = len(data) // 2
    rewrite(tar, data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    with pytest.raises(UserError, match=r"000002.tar changed since the run began.*makes 1 bad shard"):
        list(loader)
