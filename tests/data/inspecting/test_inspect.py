"""`itr data verify` and `itr data show` on intact and damaged shards."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil

import pytest
from PIL import Image

from itr.cli import main
from itr.data.inspecting.verify import read_members
from itr.data.preparing.writing import Writing, write_shards
from itr.data.raw.entries import ImageEntry, RawData
from itr.data.shards.locations import read_positives
from itr.data.shards.schema import Manifest
from itr.data.shards.writer import Record, ShardWriter, write_positives
from raw import make_raw, save_image


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    raw = make_raw(folder / "raw", 11, 5)
    raw.entries["val"][0].captions = ['<script>alert("x")</script> & co', "\u05e9\u05dc\u05d5\u05dd"]
    raw.entries["val"][1].dense = ["a dense one"]
    write_shards(raw, Writing(str(folder / "out"), shard_size=3, num_workers=1))
    return folder / "out"


@pytest.fixture
def shards(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "shards")


def faults(shards, capsys, *options) -> list[str]:
    """The faults that verify lists; also checks its exit status."""
    status = main(["data", "verify", str(shards), *options])
    output = capsys.readouterr()
    problems = [line.strip() for line in output.out.splitlines() if line.startswith("  ")]
    assert status == bool(problems)
    assert not problems or f"{len(problems)} fault{'s' * (len(problems) > 1)} in {shards}" in output.err
    return problems


def change_manifest(shards, change) -> None:
    text = json.loads((shards / "manifest.json").read_text())
    change(text["splits"])
    (shards / "manifest.json").write_text(json.dumps(text))


def rewrite(shards, change, split="val", number=0) -> None:
    """Rewrite a shard with changed samples, and the manifest with its checksum."""
    path = shards / split / f"{number:06d}.tar"
    samples = [[members["jpg"], json.loads(members["json"])] for _, members in list(read_members(path))]
    change(samples)
    with ShardWriter(shards, split, number) as writer:
        for image, meta in samples:
            record = Record(image, "jpg", meta.pop("captions"), meta.pop("name"))
            writer.add(record, meta["image_id"], meta["caption_ids"][0])
        shard = writer.finish()
    manifest = Manifest.read(shards)
    manifest.splits[split].shards[number] = shard
    manifest.write(shards)


def test_intact_shards_have_no_faults(whole, scenes, capsys):
    assert faults(whole, capsys) == []
    assert faults(whole, capsys, "--decode=false", "--num_workers=1") == []
    assert faults(scenes, capsys) == []


def test_a_flipped_byte(shards, capsys):
    path = shards / "train" / "000001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    (fault,) = faults(shards, capsys, "--decode=false")
    assert fault.startswith("train/000001.tar: has changed since it was written")


def test_missing_truncated_and_unknown_shards(shards, capsys):
    (shards / "train" / "000000.tar").unlink()
    cut = shards / "train" / "000001.tar"
    cut.write_bytes(cut.read_bytes()[:5000])
    shutil.copy(shards / "val" / "000000.tar", shards / "val" / "000007.tar")
    (shards / "val" / "000001.tar").write_bytes(b"")
    found = "\n".join(faults(shards, capsys))
    for part in (
        "train/000000.tar: is missing",
        "train/000001.tar: has 5000 bytes, but the manifest says 10240",
        "train/000001.tar: has changed since it was written",
        "train/000001.tar: could not be read to the end: unexpected end of data",
        "train/000001.tar: has 1 intact images, but the manifest says 3",
        "val/000001.tar: has 0 bytes",
        "val/000001.tar: could not be read to the end",
        "val/000007.tar: is not in the manifest",
    ):
        assert part in found


@pytest.mark.parametrize("what", ["images", "captions"])
def test_a_wrong_count(shards, capsys, what):
    change_manifest(shards, lambda splits: splits["val"]["shards"][1].update({what: 7}))
    (fault,) = faults(shards, capsys)
    assert re.fullmatch(rf"val/000001.tar: has \d intact {what}, but the manifest says 7", fault)


def test_an_undecodable_image_is_named_by_key(shards, capsys):
    rewrite(shards, lambda samples: samples[1].__setitem__(0, samples[1][0][:-300]))
    (fault,) = faults(shards, capsys)
    assert fault.startswith("val/000000.tar:000000001: its image could not be decoded (")
    assert faults(shards, capsys, "--decode=false") == []
    rewrite(shards, lambda samples: samples[1].__setitem__(0, b"GIF87a"))
    (fault,) = faults(shards, capsys, "--decode=false")
    assert "000000001: its image could not be decoded" in fault


def test_repeated_ids(shards, capsys):
    rewrite(shards, lambda samples: samples[2][1].update(image_id=1, caption_ids=[0]))
    found = faults(shards, capsys)
    where = "val/000000.tar:000000001"
    assert found[:2] == [
        f"{where}: its image_id 1 is already used by {where}",
        f"{where}: its caption_id 0 is already used by {where[:-1]}0",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{broken", "has no valid JSON"),
        (b"[]", "no integer image_id"),
        (b'{"image_id": 0, "captions": [], "caption_ids": []}', "no list of non-empty captions"),
        (b'{"image_id": 0, "captions": ["x"], "caption_ids": [1, 2]}', "does not have one caption_id per caption"),
    ],
)
def test_invalid_json(shards, capsys, text, message):
    with ShardWriter(shards, "val", 0) as writer:
        writer.tar.write({"__key__": "000000000", "jpg": b"", "json": text})
        writer.tar.write({"__key__": "000000001", "json": b"{}"})
        shard = writer.finish()
    manifest = Manifest.read(shards)
    manifest.splits["val"].shards[0] = shard
    manifest.write(shards)
    found = faults(shards, capsys)
    assert found[0].startswith("val/000000.tar:000000000: ")
    assert message in found[0]
    assert found[1] == "val/000000.tar:000000001: has no image"


def test_true_matches_of_missing_samples(scenes, tmp_path, capsys):
    copy = shutil.copytree(scenes, tmp_path / "scenes")
    image_id, caption_id = read_positives(copy, "val")
    image_id[0] = 999
    write_positives(copy, "val", image_id, caption_id)
    assert faults(copy, capsys) == ["val/positives.npz: has 1 image_ids that no sample has, such as 999"]
    (copy / "val" / "positives.npz").write_bytes(b"PK")
    assert "val/positives.npz: could not be read" in faults(copy, capsys)[0]


def test_show_prints_the_statistics(whole, tmp_path, capsys):
    assert main(["data", "show", str(whole), f"--out={tmp_path / 'sheet.html'}"]) == 0
    rows = [re.split(r"\s{2,}", line) for line in capsys.readouterr().out.splitlines()]
    size = sum(path.stat().st_size for path in (whole / "train").iterdir()) / 1e6
    assert rows[0] == ["split", "images", "captions", "an image", "width x height", "MB", "shards"]
    sizes = "60-60 x 48-48, median 60 x 48"
    assert rows[1] == ["train", "11", "21", "1 to 3, mean 1.91", sizes, f"{size:.1f}", "4"]
    assert rows[2][:4] == ["val", "5", "10", "1 to 3, mean 2.00"]
    assert ["settings: shard_size 3, seed 0"] in rows


def test_show_writes_a_self_contained_page(whole, tmp_path):
    page = tmp_path / "new" / "sheet.html"
    assert main(["data", "show", str(whole), "--split=val", f"--out={page}", "--number=24"]) == 0
    text = page.read_text(encoding="utf-8")
    assert '<li dir="auto">&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; co</li>' in text
    assert '<li dir="auto">\u05e9\u05dc\u05d5\u05dd</li>' in text
    assert "a dense one" in text
    assert "<script" not in text
    images = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    assert len(images) == 5
    for image in images:
        assert Image.open(io.BytesIO(base64.b64decode(image))).size == (60, 48)
    assert re.findall(r"(?:src|href)=\"(?!data:)", text) == []


def test_the_page_shows_every_image_format(tmp_path):
    names = [f"a.{kind}" for kind in ("jpg", "png", "gif", "bmp", "webp", "tif")]
    for name in names:
        save_image(tmp_path / name, 1, 40, 30)
    raw = RawData(tmp_path, {"train": [ImageEntry(name, ["x"]) for name in names]}, "made")
    write_shards(raw, Writing(str(tmp_path / "out"), num_workers=1))
    assert main(["data", "show", str(tmp_path / "out")]) == 0
    found = re.findall(r'src="data:image/(\w+);base64,([^"]+)"', (tmp_path / "out" / "sheet.html").read_text())
    assert sorted(kind for kind, _ in found) == ["bmp", "gif", "jpeg", "png", "png", "webp"]
    for kind, image in found:
        assert (Image.open(io.BytesIO(base64.b64decode(image))).format or "").lower() == kind


def test_the_samples_on_the_page_depend_on_the_seed(whole, tmp_path):
    pages = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        main(["data", "show", str(whole), f"--out={tmp_path / name}.html", "--number=4", f"--seed={seed}"])
        pages.append((tmp_path / f"{name}.html").read_text())
    assert pages[0] == pages[1] != pages[2]
    assert pages[0].count("<figure>") == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "nowhere"], "nowhere has no manifest.json; see `itr prepare --help`"),
        (["show", "nowhere"], "nowhere has no manifest.json"),
        (["show", "SHARDS", "--split=tset"], "no split 'tset'; it has train, val"),
        (["show", "SHARDS", "--out=sheet.jpg"], "must end in .html"),
        (["show", "SHARDS", "--out=/proc/sheet.html"], "could not write /proc/sheet.html"),
    ],
)
def test_wrong_options_have_one_clear_message(whole, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["data", *(str(whole) if word == "SHARDS" else word for word in arguments)]) == 1
    assert message in capsys.readouterr().err


def test_show_points_to_verify_for_a_damaged_shard(shards, capsys):
    (shards / "train" / "000000.tar").unlink()
    assert main(["data", "show", str(shards)]) == 1
    message = "000000.tar: No such file or directory; run `itr data verify` for details"
    assert message in capsys.readouterr().err


def test_metadata_from_the_source_is_kept(tmp_path, capsys):
    raw = make_raw(tmp_path / "raw", 1, 0)
    raw.entries["train"][0] = ImageEntry("train/0000.jpg", ["x"], [], {"node": 7})
    write_shards(raw, Writing(str(tmp_path / "out"), num_workers=1))
    ((_, members),) = read_members(tmp_path / "out" / "train" / "000000.tar")
    assert json.loads(members["json"])["node"] == 7
