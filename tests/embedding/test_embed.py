"""`itr embed`: shards, a folder of images and lines of text give the same embeddings for the same contents."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from itr.cli import main
from itr.data.shards.locations import find_split
from itr.data.shards.tars import read_tar
from itr.embedding.lengths import has_unit_length
from itr.embedding.strings import load_strings, string_arrays, strings_of
from itr.errors import UserError
from linked_folders import make_tree
from third_party import write_tar
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


@pytest.mark.slow
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


def test_without_a_terminal_shards_are_embedded_without_a_bar(scenes, checkpoint, tmp_path, capfd):
    found = embed(checkpoint, tmp_path / "a.npz", "--data", str(scenes), "--split", "val")
    printed = "".join(capfd.readouterr())
    assert f"embedded {len(found['image'])} images, {len(found['text'])} texts: " in printed
    assert "Predicting" not in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "e.npz"], "give --data SHARDS, or --images FOLDER"),
        (["--out", "e.npz", "--data", "{shards}", "--texts", "y"], "give --data SHARDS, or --images FOLDER"),
        (["--out", "e.txt", "--data", "x"], "ends in .npz"),
        (["--out", "e.npz", "--images", "/nowhere"], "the folder /nowhere does not exist"),
        (["--out", "e.npz", "--texts", "/nowhere"], "or - for standard input; could not read /nowhere"),
        (["--out", "e.npz", "--texts", "a dog"], "--texts takes a file with one caption per line"),
    ],
)
def test_mistakes_are_named(checkpoint, scenes, options, message, capsys):
    options = [option.format(shards=scenes) for option in options]
    assert main(["embed", "--ckpt_path", checkpoint, *options]) == 1
    assert message in capsys.readouterr().err


LINES = "a dog on a sofa\r\na cat\u2028asleep\n\ntwo boats\x0cat sea\na bird\x85in\ra tree\n \n" + "long " * 4000 + "\n"
CAPTIONS = ["a dog on a sofa", "a cat asleep", "two boats at sea", "a bird in a tree", ("long " * 4000).strip()]


@pytest.mark.slow
def test_only_line_feeds_end_a_line_and_a_long_line_costs_its_own_length(checkpoint, tmp_path, monkeypatch):
    raw = LINES.encode() + b"filler\n" * 500
    (tmp_path / "lines.txt").write_bytes(raw)
    arrays = embed(checkpoint, tmp_path / "a.npz", "--texts", str(tmp_path / "lines.txt"))
    assert arrays["caption_id"][:6].tolist() == [0, 1, 3, 4, 6, 7]
    assert strings_of(arrays, "caption")[:5] == CAPTIONS
    assert load_strings(tmp_path / "a.npz", "caption") == [*CAPTIONS, *["filler"] * 500]
    assert (tmp_path / "a.npz").stat().st_size < 2 * len(raw) + 4 * arrays["text"].nbytes
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
    piped = embed(checkpoint, tmp_path / "b.npz", "--texts", "-")
    np.testing.assert_array_equal(piped["text"], arrays["text"])


def test_short_strings_are_also_stored_as_before_and_old_files_are_read(tmp_path):
    names = ["a/ä.jpg", "b/\udcff.jpg", ""]  # the second has a byte that is not UTF-8
    arrays = string_arrays("image_name", names)
    assert arrays["image_name"].tolist() == names
    np.savez(tmp_path / "new.npz", **arrays)
    assert load_strings(tmp_path / "new.npz", "image_name") == names
    np.savez(tmp_path / "old.npz", image_name=np.array(names))
    assert load_strings(tmp_path / "old.npz", "image_name") == names
    with pytest.raises(UserError, match="has no caption"):
        load_strings(tmp_path / "old.npz", "caption")


def test_folders_that_are_links_are_embedded_and_what_is_not_read_is_named(checkpoint, tmp_path, capsys):
    make_tree(tmp_path)
    (tmp_path / "images" / "clip.mp4").write_bytes(b"film")
    arrays = embed(checkpoint, tmp_path / "e.npz", "--images", str(tmp_path / "images"))
    assert arrays["image_name"].tolist() == ["a/1.jpg", "b/2.jfif", "b/3.avif"]
    captured = capsys.readouterr()
    said = captured.out + captured.err
    assert "not read: 1 .mp4" in said
    assert "links back to a folder above, not followed: a/above" in said
    assert "these embeddings are not normalized" in said
    assert not arrays["normalized"]


def test_files_say_whether_embeddings_have_unit_length():
    rows = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert has_unit_length({"image": unit, "text": unit, "image_id": np.arange(3)})
    assert not has_unit_length({"image": unit, "text": rows})


def test_files_that_are_not_checkpoints(tmp_path, capsys):
    path, lines = tmp_path / "a.ckpt", tmp_path / "lines.txt"
    lines.write_text("a dog")
    for said in ("a.ckpt does not exist", "is not a checkpoint that"):
        assert main(["embed", "--ckpt_path", str(path), "--out", "e.npz", "--texts", str(lines)]) == 1
        assert said in capsys.readouterr().err
        path.write_bytes(b"nothing")


@pytest.mark.slow
def test_tars_of_images_alone_get_the_embeddings_and_ids_of_tars_with_captions(scenes, checkpoint, tmp_path):
    samples = [s for shard in find_split(scenes, "val").shards for s in read_tar(shard.place)]
    halves = {"00000.tar": samples[:6], "00001.tar": samples[6:]}
    for name, part in halves.items():
        keyed = [(f"{number:09d}", sample) for number, sample in enumerate(part)]
        write_tar(tmp_path / "images" / name, {f"{key}.png": sample.image for key, sample in keyed})
        with_text = {f"{key}.{kind}": value for key, sample in keyed for kind, value in
                     (("png", sample.image), ("txt", sample.captions[0].encode()))}  # fmt: skip
        write_tar(tmp_path / "pairs" / name, with_text)
    pairs = embed(checkpoint, tmp_path / "a.npz", "--data", str(tmp_path / "pairs" / "*.tar"))
    alone = embed(checkpoint, tmp_path / "b.npz", "--data", str(tmp_path / "images" / "*.tar"))
    order = np.argsort(alone["image_id"])
    assert alone["image_id"][order].tolist() == pairs["image_id"].tolist()
    for name in ("image", "image_unimodal"):
        np.testing.assert_allclose(alone[name][order], pairs[name], atol=1e-5)
    assert "text" not in alone
    assert len(alone["image_name"]) == 13


@pytest.mark.slow
def test_what_a_tar_of_images_has_besides_is_named_or_refused(checkpoint, tmp_path, capsys):
    image = io.BytesIO()
    Image.new("RGB", (32, 32)).save(image, "PNG")
    members = {"a/0.png": image.getvalue(), "a/0.cls": b"3", "a/1.svg": b"<svg/>", "2.png": image.getvalue()}
    tar = write_tar(tmp_path / "0.tar", members)
    arrays = embed(checkpoint, tmp_path / "e.npz", "--data", str(tar))
    assert strings_of(arrays, "image_name") == ["a/0", "2"]
    assert "0.tar: not read: 1 .cls, 1 .svg" in "".join(capsys.readouterr())
    for more, message in (
        (
            {"3.png": image.getvalue(), "3.txt": b"a dog"},
            "0.tar:3 has a caption, but the first sample of the tars has none",
        ),
        ({"v1.0.png": image.getvalue()}, "0.tar:v1 has no image (v1.0.png is not one: a key ends at the first dot)"),
    ):
        write_tar(tar, members | more)
        assert main(["embed", "--ckpt_path", checkpoint, "--out", str(tmp_path / "e.npz"), "--data", str(tar)]) == 1
        assert message in capsys.readouterr().err
