"""What `itr prepare` writes for given entries, whichever source they come from."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from itr.data.inspecting.verify import verify
from itr.data.preparing.writing import Writing, write_shards
from itr.data.raw.entries import ImageEntry, RawData
from itr.data.shards.locations import find_split
from itr.data.shards.schema import Manifest
from itr.data.shards.staging import Staging
from itr.data.shards.tars import read_tar
from itr.errors import UserError
from itr.images.decode import decode_pixels, image_size
from itr.images.transforms import decode
from raw import file_hashes, make_raw, save_image

# A family of three joined by U+200D, "shalom" between direction marks, "marhaba".
FAMILY = (
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u202b\u05e9\u05dc\u05d5\u05dd\u202c \u0645\u0631\u062d\u0628\u0627"
)


@pytest.fixture
def raw(tmp_path) -> RawData:
    return make_raw(tmp_path / "raw")


def prepare(raw: RawData, out, **options) -> Manifest:
    return write_shards(raw, Writing(str(out), **{"num_workers": 1, "shard_size": 3, **options}))


def samples(out, split):
    return [sample for shard in Manifest.read(out).splits[split].shards for sample in read_tar(out / shard.path)]


def test_bytes_captions_and_ids_match_the_source(raw, tmp_path):
    prepare(raw, tmp_path / "out")
    order = np.random.default_rng(0).permutation(11)
    for split, entries in (("train", [raw.entries["train"][i] for i in order]), ("val", raw.entries["val"])):
        found = samples(tmp_path / "out", split)
        assert [sample.name for sample in found] == [entry.image for entry in entries]
        assert [sample.captions for sample in found] == [entry.captions for entry in entries]
        assert [sample.image for sample in found] == [(raw.image_root / e.image).read_bytes() for e in entries]
        assert [sample.image_id for sample in found] == list(range(len(entries)))
        assert [i for sample in found for i in sample.caption_ids] == list(range(sum(len(e.captions) for e in entries)))
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.settings == {"resize": None, "quality": None, "shard_size": 3, "seed": 0}
    assert (manifest.source, manifest.fields) == ("made", ["image", "captions"])
    verify(str(tmp_path / "out"))


def test_a_tar_equals_the_one_webdataset_writes(raw, tmp_path):
    shard = prepare(raw, tmp_path / "out", shard_size=100).splits["val"].shards[0]
    with tarfile.open(tmp_path / "plain.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in read_tar(tmp_path / "out" / shard.path):
            text = json.dumps(sample.meta, ensure_ascii=False).encode()
            for ending, data in (("jpg", sample.image), ("json", text)):
                member = tarfile.TarInfo(f"{sample.image_id:09d}.{ending}")
                member.size, member.mode, member.uname, member.gname = len(data), 0o444, "itr", "itr"
                tar.addfile(member, io.BytesIO(data))
    written = (tmp_path / "out" / shard.path).read_bytes()
    assert written == (tmp_path / "plain.tar").read_bytes()
    assert (shard.bytes, shard.sha256) == (len(written), hashlib.sha256(written).hexdigest())


@pytest.mark.slow
@pytest.mark.parametrize("resize", [None, 24])
def test_the_number_of_workers_does_not_change_the_bytes(raw, tmp_path, resize):
    for workers in (1, 2):
        prepare(raw, tmp_path / str(workers), num_workers=workers, resize=resize)
    assert file_hashes(tmp_path / "1") == file_hashes(tmp_path / "2")
    assert len(file_hashes(tmp_path / "1")) == 4 + 2 + 2  # only shards, their manifest and the plan


def test_resizing_is_antialiased(tmp_path):
    save_image(tmp_path / "large.jpg", 1, 400, 300, quality=95)
    prepare(RawData(tmp_path, {"train": [ImageEntry("large.jpg", ["x"])]}, "made"), tmp_path / "out", resize=100)
    (sample,) = samples(tmp_path / "out", "train")
    assert image_size(sample.image) == (133, 100)
    large = decode((tmp_path / "large.jpg").read_bytes(), 10**9)[None].float()
    expected = torch.nn.functional.interpolate(large, (100, 133), mode="bicubic", antialias=True)[0]
    error = (decode(sample.image, 10**9).float() - expected).square().mean()
    assert 10 * torch.log10(255**2 / error) > 36  # dB
    manifest = Manifest.read(tmp_path / "out")
    assert (manifest.settings["resize"], manifest.settings["quality"]) == (100, 95)


def test_no_image_is_enlarged_or_reencoded_needlessly(tmp_path):
    save_image(tmp_path / "small.jpg", 1, 64, 48)
    save_image(tmp_path / "exact.png", 2, 70, 50)
    prepare(make_entries(tmp_path, "small.jpg", "exact.png"), tmp_path / "out", resize=50)
    for sample in samples(tmp_path / "out", "train"):
        assert sample.image == (tmp_path / sample.name).read_bytes()


def test_resized_images_are_rgb_jpegs_and_nothing_is_rotated(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    save_image(tmp_path / "turned.jpg", 1, 90, 60, exif=exif, comment=b"private")
    Image.new("RGBA", (60, 90), (255, 0, 0, 255)).save(tmp_path / "opaque.png")
    Image.fromarray(np.full((60, 90), 65535, np.uint16)).save(tmp_path / "deep.png")
    Image.new("CMYK", (90, 60)).save(tmp_path / "ink.jpg")
    names = ["turned.jpg", "opaque.png", "deep.png", "ink.jpg"]
    prepare(make_entries(tmp_path, *names), tmp_path / "out", resize=30)
    for sample in samples(tmp_path / "out", "train"):
        with Image.open(io.BytesIO(sample.image)) as image, Image.open(tmp_path / sample.name) as before:
            assert (image.format, image.mode, min(image.size)) == ("JPEG", "RGB", 30)
            assert (image.width > image.height) == (before.width > before.height)
            assert not image.getexif()
            assert "comment" not in image.info
        expected = decode_pixels((tmp_path / sample.name).read_bytes(), 10**9).mean()
        assert abs(decode_pixels(sample.image, 10**9).mean() - expected) < 2


def test_images_that_backbones_convert_in_their_own_ways_keep_their_bytes(tmp_path):
    Image.new("RGBA", (60, 90), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("P", (60, 60)).save(tmp_path / "table.gif")
    Image.new("1", (60, 60)).save(tmp_path / "ink.tif")
    prepare(make_entries(tmp_path, "clear.png", "table.gif", "ink.tif"), tmp_path / "out", resize=30)
    found = samples(tmp_path / "out", "train")
    assert [sample.image for sample in found] == [(tmp_path / sample.name).read_bytes() for sample in found]


def make_entries(root, *names) -> RawData:
    return RawData(root, {"train": [ImageEntry(name, ["a caption"]) for name in names]}, "made")


def test_captions_are_kept_or_cleaned_by_rule(tmp_path, capsys):
    save_image(tmp_path / "a.jpg", 1)
    captions = [
        "nul\0 and\x07 bell",
        "lone \ud83d half, pair \ud83d\ude00",
        "windows\r\nline\u2028ends\t ",
        FAMILY,
        " \0 ",
    ]
    entry = ImageEntry("a.jpg", captions, ["dense\0"], {"note": "lone \udc00", "nul": "\0"})
    empty = ImageEntry("gone.jpg", ["\0"])
    prepare(RawData(tmp_path, {"train": [entry, empty]}, "made"), tmp_path / "out")
    (sample,) = samples(tmp_path / "out", "train")
    assert sample.captions == [
        "nul and bell",
        "lone \ufffd half, pair 😀",
        "windows line ends",
        FAMILY,
    ]
    assert (sample.meta["dense"], sample.meta["note"], sample.meta["nul"]) == (["dense"], "lone \ufffd", "\0")
    output = capsys.readouterr().out
    for part in (
        "skipped 1 images without a caption",
        "4 captions held control characters",
        "1 captions held invalid Unicode",
    ):
        assert part in output


def test_all_bad_files_are_reported_and_nothing_is_written(tmp_path):
    save_image(tmp_path / "raw" / "good.jpg", 1)
    (tmp_path / "raw" / "empty.jpg").touch()
    (tmp_path / "raw" / "page.jpg").write_text("\n<!DOCTYPE html><p>404")
    (tmp_path / "raw" / "pointer.jpg").write_text("version https://git-lfs.github.com/spec/v1")
    (tmp_path / "raw" / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "raw" / "pipe.jpg")
    save_image(tmp_path / "outside.jpg", 1)
    expected = {
        "empty.jpg": "is empty",
        "page.jpg": "is a web page, not an image",
        "pointer.jpg": "is not an image (it starts with b'version http')",
        "folder.jpg": "could not be read (Is a directory)",
        "pipe.jpg": "is a pipe or a device, not a regular file",
        "sub/../../outside.jpg": "is outside the image folder",
    }
    for name, problem in {
        **expected,
        "nul\0.jpg": "could not be read",
        "good.txt": "does not have one of the extensions",
    }.items():
        with pytest.raises(UserError) as caught:
            prepare(make_entries(tmp_path / "raw", "good.jpg", name), tmp_path / "out")
        begin = f"1 of 2 images of train cannot be used (image folder: {tmp_path / 'raw'}):"
        assert f"{begin}\n  {repr(name)[1:-1]}: {problem}" in str(caught.value)
    names = [*expected, str(tmp_path / "outside.jpg"), "gone.jpg", "good.jpg"]
    with pytest.raises(UserError, match=r"(?s)8 of 9 images.*empty.jpg.*and 3 more\n.*--bad_images skip"):
        prepare(make_entries(tmp_path / "raw", *names), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    prepare(make_entries(tmp_path / "raw", *names), tmp_path / "out", bad_images="skip")
    assert [sample.name for sample in samples(tmp_path / "out", "train")] == ["good.jpg"]


def test_links_inside_the_folder_and_absolute_paths_below_it_are_followed(tmp_path):
    save_image(tmp_path / "disk" / "a.jpg", 1)
    save_image(tmp_path / "raw" / "b.jpg", 2)
    (tmp_path / "raw" / "train2014").symlink_to(tmp_path / "disk")
    raw = make_entries(tmp_path / "raw", "train2014/a.jpg", str(tmp_path / "raw" / "b.jpg"))
    assert prepare(raw, tmp_path / "out").splits["train"].images == 2


def test_a_duplicate_image_is_rejected(tmp_path):
    save_image(tmp_path / "a.jpg", 1)
    with pytest.raises(UserError, match=r"image a.jpg appears 2 times in train"):
        prepare(make_entries(tmp_path, "a.jpg", "./a.jpg"), tmp_path / "out")
    names = [f"{i}.jpg" for i in range(9)]
    with pytest.raises(UserError, match=r"0.jpg appears 2 times in train(?s:.*)\(6 more such images\)"):
        prepare(make_entries(tmp_path, *names, *names), tmp_path / "out")
    twice = {split: [ImageEntry("a.jpg", ["x"])] for split in ("train", "test")}
    with pytest.raises(UserError, match=r"a.jpg is in both train and test; splits must not overlap"):
        prepare(RawData(tmp_path, twice, "made"), tmp_path / "out")


@pytest.mark.parametrize("workers", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_truncated_image_is_reported_and_the_other_shards_are_kept(raw, tmp_path, capsys, workers):
    out, cut = tmp_path / "out", raw.image_root / "val" / "0003.jpg"
    original = cut.read_bytes()
    cut.write_bytes(original[: len(original) // 2])
    with pytest.raises(UserError, match=r"1 of 5 images of val.*\n  val/0003.jpg: could not be decoded .*truncated"):
        prepare(raw, out, resize=24, num_workers=workers)
    assert not (out / "manifest.json").exists()
    with pytest.raises(UserError, match="is not finished; run the same `itr prepare` command again"):
        find_split(out, "train")
    prepare(raw, tmp_path / "skipped", resize=24, num_workers=workers, bad_images="skip")
    assert [sample.image_id for sample in samples(tmp_path / "skipped", "val")] == [0, 1, 2, 4]
    verify(str(tmp_path / "skipped"))
    cut.write_bytes(original)
    capsys.readouterr()
    prepare(raw, out, resize=24, num_workers=workers)
    assert "continuing: 5 of 6 shards are already finished" in capsys.readouterr().out
    prepare(raw, tmp_path / "fresh", resize=24)
    assert file_hashes(out) == file_hashes(tmp_path / "fresh")


def test_a_damaged_header_is_reported_when_bytes_are_copied(raw, tmp_path):
    (raw.image_root / "val" / "0001.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    with pytest.raises(UserError, match=r"val/0001.jpg: could not be decoded"):
        prepare(raw, tmp_path / "out")


def test_repeating_the_command_changes_nothing(raw, tmp_path, capsys):
    out = tmp_path / "out"
    prepare(raw, out)
    before = file_hashes(out), os.stat(out / "train" / "000000.tar").st_mtime_ns
    prepare(raw, out, num_workers=2)
    assert "is already up to date" in capsys.readouterr().out
    assert before == (file_hashes(out), os.stat(out / "train" / "000000.tar").st_mtime_ns)
    (out / "train" / "000001.tar").unlink()
    prepare(raw, out)
    assert before[0] == file_hashes(out)


def test_earlier_shards_stay_until_the_new_ones_are_complete(raw, tmp_path, capsys):
    out, other = tmp_path / "out", tmp_path / "other"
    prepare(raw, out, shard_size=1)
    before = file_hashes(out)
    bad = raw.image_root / "train" / "0000.jpg"
    bad.write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UserError, match=r"0000.jpg"):
        prepare(raw, out, shard_size=4)
    assert {name: sha for name, sha in file_hashes(out).items() if not name.startswith(".preparing")} == before
    verify(str(out))
    save_image(bad, 77)
    capsys.readouterr()
    prepare(raw, out, shard_size=5)
    assert "made from other images, captions or options" in capsys.readouterr().out
    prepare(raw, other, shard_size=5)
    assert file_hashes(out) == file_hashes(other)


def test_an_interrupted_move_is_finished(raw, tmp_path, capsys):
    out, new = tmp_path / "out", tmp_path / "new"
    prepare(raw, out, shard_size=1)
    prepare(raw, new, shard_size=4)
    expected = file_hashes(new)
    files = [name for name in expected if name != "manifest.json"] + ["manifest.json"]
    new.rename(out / ".preparing")
    (out / ".preparing" / "ready.json").write_text(json.dumps(files))
    (out / "manifest.json").rename(out / ".preparing" / "old.json")
    (out / ".preparing" / files[1]).replace(out / files[1])
    with pytest.raises(UserError, match="is not finished"):
        find_split(out, "train")
    prepare(raw, out, shard_size=4)
    assert "it has now been moved" in capsys.readouterr().out
    assert file_hashes(out) == expected


def test_unknown_tars_are_neither_used_nor_deleted(raw, tmp_path):
    unknown = tmp_path / "out" / "train" / "mine.tar"
    unknown.parent.mkdir(parents=True)
    unknown.write_bytes(b"precious")
    with pytest.raises(UserError, match=r"holds 1 tars that no manifest lists, such as .*mine.tar; choose another"):
        prepare(raw, tmp_path / "out")
    assert list(file_hashes(tmp_path / "out")) == ["train/mine.tar"]


def test_two_processes_cannot_write_to_one_folder(raw, tmp_path):
    with Staging(tmp_path / "out"), pytest.raises(UserError, match="another `itr prepare` is writing"):
        prepare(raw, tmp_path / "out")
    prepare(raw, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": 0}, "resize=0"),
        ({"quality": 101}, "quality=101"),
        ({"shard_size": 0}, "shard_size=0"),
        ({"num_workers": 0}, "num_workers=0"),
        ({"out": "/proc/shards"}, "could not write to /proc/shards"),
    ],
)
def test_invalid_settings_are_reported(raw, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        prepare(raw, **{"out": tmp_path / "out", **options})
