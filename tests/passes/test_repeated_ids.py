"""Features of samples that share an id, as img2dataset writes one sample per caption: one row for each id."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from itr.data.features.headers import FeaturePaths, Header
from itr.data.features.stored import FeatureFile
from itr.data.features.writer import FeatureWriter
from itr.data.shards.locations import find_split
from itr.data.shards.schema import data_identity
from itr.errors import UserError
from itr.passes.features import make_features
from third_party import make_image, write_tar
from tiny_teachers import save_image_teacher

IMAGES = [make_image(number) for number in range(4)]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    return save_image_teacher(tmp_path_factory.mktemp("teacher"))


def shards(folder: Path, owners: list[list[int]], images: list[bytes] = IMAGES) -> str:
    """A tar for each list of numbers, with a sample of the image of each number, whose image_id is a text."""
    key = 0
    for shard, numbers in enumerate(owners):
        members: dict[str, bytes] = {}
        for number in numbers:
            members[f"{key:09d}.jpg"] = images[number]
            members[f"{key:09d}.json"] = json.dumps({"caption": f"caption {key}", "image_id": f"00{number}"}).encode()
            key += 1
        write_tar(folder / f"{shard:05d}.tar", members)
    return str(folder / "*.tar")


def features(data: str, teacher: str, out: Path) -> FeatureFile:
    options = {"batch_size": 3, "num_workers": 0, "device": "cpu"}
    make_features(data, "image", str(out), teacher, splits="train", **options)
    return FeatureFile.open(out, "train", "image", data_identity(find_split(data, "train")), data)


def test_samples_of_one_image_get_one_row_across_shards(teacher, tmp_path, capsys):
    repeated = shards(tmp_path / "repeated", [[0, 1, 2, 0, 3], [1, 0, 3, 2, 2]])
    found = features(repeated, teacher, tmp_path / "a")
    assert "wrote 4 rows x 8 (6 of the 10 samples repeat an id, and share its row)" in capsys.readouterr().out
    alone = features(shards(tmp_path / "alone", [[0, 1, 2, 3]]), teacher, tmp_path / "b")
    (rows, ids), (expected, expected_ids) = found.arrays, alone.arrays
    assert ids.tolist() == expected_ids.tolist()
    np.testing.assert_allclose(rows.astype(float), expected.astype(float), atol=2e-3)
    assert found.rows([ids[2], ids[0], ids[2]]).shape == (3, 8)
    features(repeated, teacher, tmp_path / "a")
    assert "already exists (4 rows x 8 (6 of the 10" in capsys.readouterr().out


def test_different_images_with_one_id_are_refused(teacher, tmp_path):
    data = shards(tmp_path / "data", [[0, 1, 1], [2]])
    write_tar(tmp_path / "data" / "00001.tar", {"9.jpg": IMAGES[3], "9.json": b'{"caption": "x", "image_id": "001"}'})
    with pytest.raises(
        UserError, match=r"image_id \d+ belongs to different images, .* remove image_id from the shards"
    ):
        features(data, teacher, tmp_path / "out")


def writer(folder: Path) -> FeatureWriter:
    return FeatureWriter(FeaturePaths(folder, "train", "text"), Header("t", "text", 2, 4, "data"), 2)


@pytest.mark.parametrize("killed", [False, True])
def test_different_captions_of_two_chunks_are_refused_at_once_or_after_a_kill(tmp_path, killed):
    rows, message = torch.ones(2, 2), "caption_id 7 belongs to different captions"
    first = writer(tmp_path)
    first.write(0, [5, 7], rows, [50, 70], [])
    first.flush()
    if not killed:
        with pytest.raises(UserError, match=message):
            first.write(1, [7, 8], rows, [71, 80], [])
        return
    second = writer(tmp_path)
    second.write(1, [7, 8], rows, [71, 80], [])
    with pytest.raises(UserError, match=message):
        second.finish()


def test_a_pass_that_was_begun_without_marks_begins_again(tmp_path):
    first = writer(tmp_path)
    first.write(0, [5, 7], torch.ones(2, 2), [50, 70], [])
    first.flush()
    assert writer(tmp_path).done.tolist() == [True, False]
    first.part_columns["marks"].unlink()
    assert writer(tmp_path).done.tolist() == [False, False]
