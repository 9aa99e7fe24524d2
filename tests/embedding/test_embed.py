"""`itr embed`: shards, a folder of images and lines of text give the same embeddings for the same contents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from itr.cli import main
from itr.data.shards.locations import find_split
from itr.data.shards.tars import read_tar
from tiny import save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with heads for search within a modality."""
    return save_checkpoint(tmp_path_factory.mktemp("run"), scenes, "--model.methods+=CUSA")


def embed(checkpoint: str, out: Path, *options: str) -> dict[str, np.ndarray]:
    arguments = ["embed", "--ckpt_path", checkpoint, "--out", str(out), "--num_workers", "0", "--device", "cpu"]
    assert main([*arguments, *options]) == 0
    with np.load(out, allow_pickle=False) as arrays:
        return dict(arrays)


def test_the_same_images_and_captions_get_the_same_embeddings(scenes, checkpoint, tmp_path):
    shards = embed(checkpoint, tmp_path / "a.npz", "--data", str(scenes), "--split", "val", "--batch_size", "5")
    samples = [s for shard in find_split(scenes, "val").shards for s in read_tar(shard.place)]
    images = tmp_path / "images" / "below"
    images.mkdir(parents=True)
    for sample in samples:
        (images / f"{sample.image_id:03d}.png").write_bytes(sample.image)
    (images / "broken.jpg").write_bytes(b"<html>")
    (images / "notes.txt").write_text("no image")
    captions = [caption for sample in samples for caption in sample.captions]
    lines = tmp_path / "lines.txt"
    lines.write_text("\n\n".join(captions) + "\n", encoding="utf-8")
    free = embed(checkpoint, tmp_path / "b.npz", "--images", str(tmp_path / "images"), "--texts", str(lines))
    for name in ("image", "text", "image_unimodal", "text_unimodal"):
        np.testing.assert_allclose(free[name], shards[name], atol=1e-5)
    assert not np.allclose(shards["text"], shards["text_unimodal"])
    assert free["image_name"].tolist() == [f"below/{sample.image_id:03d}.png" for sample in samples]
    assert free["caption"].tolist() == captions
    assert free["caption_id"].tolist() == list(range(0, 2 * len(captions), 2))
    assert shards["caption_image_id"].tolist() == [s.image_id for s in samples for _ in s.captions]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "e.npz"], "give --data SHARDS, or --images FOLDER"),
        (["--out", "e.npz", "--data", "x", "--texts", "y"], "give --data SHARDS, or --images FOLDER"),
        (["--out", "e.txt", "--data", "x"], "ends in .npz"),
        (["--out", "e.npz", "--images", "/nowhere"], "the folder /nowhere does not exist"),
        (["--out", "e.npz", "--texts", "/nowhere"], "could not read /nowhere"),
    ],
)
def test_mistakes_are_named(checkpoint, options, message, capsys):
    assert main(["embed", "--ckpt_path", checkpoint, *options]) == 1
    assert message in capsys.readouterr().err


def test_files_that_are_not_checkpoints(tmp_path, capsys):
    path, lines = tmp_path / "a.ckpt", tmp_path / "lines.txt"
    lines.write_text("a dog")
    for said in ("a.ckpt does not exist", "is not a checkpoint that"):
        assert main(["embed", "--ckpt_path", str(path), "--out", "e.npz", "--texts", str(lines)]) == 1
        assert said in capsys.readouterr().err
        path.write_bytes(b"nothing")
