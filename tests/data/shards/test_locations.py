"""Tars without a manifest: folders, lists, patterns, counts, ids, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import shutil
import tarfile
from pathlib import Path

import pytest

from itr.data.datamodule import ShardData
from itr.data.features.sharing import split_names
from itr.data.inspecting.show import show
from itr.data.inspecting.verify import verify
from itr.data.shards.counts import cache_folder
from itr.data.shards.locations import find_split, normalize_root, read_positives, resolve
from itr.data.shards.patterns import expand_braces, names_tars, split_list
from itr.data.shards.schema import Manifest, Sample, data_identity
from itr.data.shards.tars import count_tar, read_tar
from itr.errors import UserError
from third_party import downloaded, make_image, write_tar


def samples(root: Path | str, split: str = "train") -> list[Sample]:
    return [sample for shard in find_split(root, split).shards for sample in read_tar(shard.place)]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("{0..2}.tar", ["0.tar", "1.tar", "2.tar"]),
        ("a/{08..11}.tar", ["a/08.tar", "a/09.tar", "a/10.tar", "a/11.tar"]),
        ("{a,b}/{1..2}", ["a/1", "a/2", "b/1", "b/2"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{9..10}", ["9", "10"]),
        ("{2..-1}", ["2", "1", "0", "-1"]),
        ("{00..10..5}", ["00", "05", "10"]),
        ("{a..c}", ["a", "b", "c"]),
        ("a{,-b}.tar", ["a.tar", "a-b.tar"]),
        ("{one}.tar", ["{one}.tar"]),
        (r"a\{0..1}", [r"a\0", r"a\1"]),
        ("plain.tar", ["plain.tar"]),
    ],
)
def test_braces_expand_as_in_bash(text, written):
    assert list(expand_braces(text)) == written


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{0..9}{0..999999}.tar", "more than 1,000,000 tars"),
        ("{0..99999999999999999999}.tar", "more than 1,000,000 tars"),
        ("{" + "9" * 5000 + "..0}.tar", "could not expand .*: Exceeds the limit"),
        ("{0..2.tar", "could not expand .*: Unbalanced braces; write"),
        ("0..2}.tar", "Unbalanced braces"),
        ("{{0..2},b}.tar", "nested braces"),
    ],
)
def test_braces_that_cannot_expand_are_refused_before_expanding(text, message):
    with pytest.raises(UserError, match=message):
        expand_braces(text)


@pytest.mark.parametrize("name", ["{0..1}.tar", "a,b.tar", "{a,b}.tar", "a{b.tar", "{{0..1},2}.tar", "a*.tar"])
def test_the_path_of_a_file_means_that_file(tmp_path, name):
    for other in (name, "0.tar", "1.tar", "a.tar", "b.tar", "ab.tar"):
        write_tar(tmp_path / other, {"x.jpg": make_image(0), "x.txt": other.encode()})
    for root, split in ((tmp_path, name), (tmp_path / name, "train"), (tmp_path, str(tmp_path / name))):
        assert [sample.captions for sample in samples(root, split)] == [[name]]


@pytest.mark.parametrize("folder", ["{0..1}", "a,b", "{a,b}", "a{b"])
def test_the_path_of_a_folder_means_that_folder(tmp_path, folder):
    for number in range(3):
        write_tar(tmp_path / folder / "train" / f"{number}.tar", {"x.jpg": make_image(0), "x.txt": b"x"})
    for split in ("train", "train/{0..2}.tar", "train/0.tar,train/1.tar,train/2.tar", "train/*.tar"):
        assert len(find_split(tmp_path / folder, split).shards) == 3
    assert not names_tars(str(tmp_path / folder))


@pytest.mark.parametrize("folder", ["f, resized {256}", "{0..1}", "x*y", "q[1]", "p?z", "a::b", "a {b"])
def test_a_pattern_below_an_existing_folder_is_only_what_follows_it(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        write_tar(tmp_path / folder / "val" / f"{number}.tar", {"x.jpg": make_image(0), "x.txt": f"{number}".encode()})
    top = tmp_path / folder
    for root, split in (
        (f"{folder}/val/*.tar", "x"), (f"{top}/val/{{0..1}}.tar", "x"), (f"{top}/val/0.tar,{folder}/val/1.tar", "x"),
        (".", f"{folder}/val"), (".", f"{folder}/val/*.tar"), (".", f"{folder}/val/0.tar, {folder}/val/1.tar"),
        (folder, "val/{0,1}.tar"), ("elsewhere", f"{top}/val/*.tar"), (f"file://{top}/val/*.tar", "x"),
        resolve(folder, "val/*.tar", "x"), resolve(".", f"{folder}/val/0.tar,{folder}/val/1.tar", "x"),
    ):  # fmt: skip
        assert [sample.captions for sample in samples(root, split)] == [["0"], ["1"]], (root, split)
    assert split_names(f"{folder}/val", str(tmp_path)) == [f"{folder}/val"]
    assert split_names("train, val") == ["train", "val"]


def test_names_of_existing_tars_with_commas_and_braces_are_names_within_a_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a,b.tar", "c{d}.tar", "e.tar")):
        write_tar(tmp_path / name, {"x.jpg": make_image(0), "x.txt": f"{number}".encode()})
    for base in ("", f"{tmp_path}/"):
        found = samples(f"{base}a,b.tar,{base}c{{d}}.tar, {base}e.tar", "x")
        assert [sample.captions for sample in found] == [["0"], ["1"], ["2"]]
    assert split_list("a,b.tar,none.tar,{0,1}.tar") == ["a,b.tar", "none.tar", "{0,1}.tar"]


def test_names_tars_recognises_lists():
    for text in ("a.tar", "a/*.tar", "{0..3}.tar", "https://host/a.tar?token=b.c", "a.tar,b.tar", "*"):
        assert names_tars(text)
    for text in ("train", "shards", "s3://bucket/shards", "/a/b.c", ""):
        assert not names_tars(text)


@pytest.mark.parametrize("stats", [True, False])
def test_tars_of_img2dataset_are_read_without_conversion(tmp_path, stats):
    folder = downloaded(tmp_path / "cc", stats=stats)
    split = find_split(folder, "{00000..00002}.tar")
    assert [(shard.path, shard.images, shard.captions) for shard in split.shards] == [
        (f"0000{i}.tar", 5, 5) for i in range(3)
    ]
    found = samples(folder, "{00000..00002}.tar")
    assert found[7].captions == ["image 4 of shard 1"]
    assert found[7].name == found[7].meta["key"] == "000010004"
    assert len({sample.image_id for sample in found}) == len({i for s in found for i in s.caption_ids}) == 15
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "train")
    assert [s.image_id for s in samples(moved.parent)] == [s.image_id for s in found]
    assert data_identity(find_split(moved.parent, "train")) == data_identity(split)


def test_lists_of_tars_by_pattern_and_folder(tmp_path, monkeypatch):
    folder = downloaded(tmp_path / "cc", 4)
    monkeypatch.chdir(tmp_path)
    all_four = [s.image_id for s in samples(folder, "*.tar")]
    for root, split in (
        ("cc/*.tar", "train"), ("cc/{00000..00003}.tar", "x"), ("cc", "0000{0,1}.tar,0000{2..3}.tar"),
        (str(folder), "*.tar, 00001.tar"), ("elsewhere", f"{folder}/*.tar"), (f"file://{folder}", "0*.tar"),
        (".", "*/*.tar"), (f"file://{folder}/*.tar", "train"), ("cc/00000.tar", "cc/*.tar"),
    ):  # fmt: skip
        assert [s.image_id for s in samples(root, split)] == all_four, (root, split)
    assert len(samples("cc/00003.tar,cc/00001.tar")) == 10
    assert normalize_root("~/shards") == str(Path.home() / "shards")


def test_finding_a_split_does_not_change_its_manifest(scenes, tmp_path):
    text = (scenes / "manifest.json").read_text()
    manifest = Manifest.read(scenes)
    find_split(scenes, "train")
    manifest.write(tmp_path)
    assert (tmp_path / "manifest.json").read_text() == text
    assert "place" not in text


def test_two_folders_with_the_same_names_and_keys_have_different_ids(tmp_path, scenes):
    for name in ("cc3m", "cc12m"):
        downloaded(tmp_path / name, 2)
    found = samples(tmp_path, "{cc3m,cc12m}/*.tar")
    assert len({s.image_id for s in found}) == len({i for s in found for i in s.caption_ids}) == len(found) == 20
    both = samples(scenes, "{train,val}/*.tar")  # the ids of each of them count from 0
    assert len({s.image_id for s in both}) == len(both) == 57
    assert len({i for s in both for i in s.caption_ids}) == sum(len(s.captions) for s in both)
    assert [s.image_id for s in samples(scenes, "train/*.tar")] == list(range(44))


def test_counts_are_cached(tmp_path):
    folder = downloaded(tmp_path / "cc", 1, stats=False)
    tar = folder / "00000.tar"
    before = set(cache_folder().glob("*"))
    assert find_split(folder, "*.tar").images == 5
    (record,) = set(cache_folder().glob("*")) - before
    assert json.loads(record.read_text()) == {"tar": str(tar), "images": 5, "captions": 5}
    record.write_text(json.dumps({"images": 7, "captions": 8}))
    assert find_split(folder, "*.tar").captions == 8  # the tar was not read again
    record.write_text("{")
    assert find_split(folder, "*.tar").captions == 5
    write_tar(tar, {"a.jpg": make_image(0), "a.json": b'{"captions": ["one", "two", " "]}'})
    assert (find_split(folder, "*.tar").images, find_split(folder, "*.tar").captions) == (1, 2)


def test_an_unwritable_cache_folder_only_costs_time(tmp_path, monkeypatch, caplog):
    folder = downloaded(tmp_path / "cc", 1, stats=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert find_split(folder, "*.tar").images == 5


@pytest.mark.parametrize(("stated", "word"), [(6, "fewer"), (4, "more")])
def test_wrong_counts_are_reported(tmp_path, stated, word):
    from itr.data.loading.items import read_items

    folder = downloaded(tmp_path, 1)
    stats = folder / "00000_stats.json"
    stats.write_text(stats.read_text().replace('"successes": 5', f'"successes": {stated}'))
    split = find_split(folder, "*.tar")
    assert split.images == stated
    with pytest.raises(UserError, match=rf"00000.tar contains {word} samples than"):
        list(read_items(split.shards, [stated], [0], 1, stated, lambda sample: [sample]))


@pytest.mark.parametrize(
    ("root", "split", "message"),
    [
        ("cc", "*.tra", r"no shards match .*cc/\*\.tra \(.*cc holds 00000.parquet, 00000.tar, 00000_stats.json and"),
        ("cc", "{00000..00004}.tar", r"3 of the 5 tars of .* are missing, the first is .*cc/00002.tar \(.*holds 00000"),
        ("cc", "{00007..00009}.tar", r"no shards match .*\{00007\.\.00009\}\.tar"),
        ("cd", "*.tar", r"no shards match .*cd/\*\.tar \(.* holds cc\)"),
        ("cc", "train", r"no shards match .*cc/train/\*\.tar .*holds 00000"),
        ("cc", "{0..9999999}.tar", "expands to more than 1,000,000 tars"),
        ("cc", "{0000{0..1},00002}.tar", "nested braces"),
        ("empty", "*.tar", r"\(.*empty is empty\)"),
        ("cc", "00000_stats.json.tar", "no shards match"),
        ("hollow", "*.tar", "hold no images"),
    ],
)
def test_a_list_without_matches_is_reported_with_similar_names(tmp_path, root, split, message):
    downloaded(tmp_path / "cc", 2)
    if root == "empty":
        (tmp_path / "empty").mkdir()
    if root == "hollow":
        write_tar(tmp_path / "hollow" / "0.tar", {})
    with pytest.raises(UserError, match=message) as error:
        find_split(tmp_path / root, split)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("pipe:touch {mark}", "would run a program, which itr never does"),
        ("pipe:cat a.tar; touch {mark} #.tar", "run a program"),
        ("cat a.tar; touch {mark} |", "run a program"),
        ("simplecache::s3://bucket/a.tar", "chains protocols"),
        ("reference://a.tar", "does not read reference://"),
        ("github://a:b@c/d.tar", "does not read github://"),
        ("s3://bucket/a.tar", "needs the package s3fs: pip install s3fs"),
    ],
)
@pytest.mark.parametrize("place", ["root", "split"])
def test_locations_that_run_programs_are_refused(tmp_path, location, message, place):
    mark = tmp_path / "mark"
    location = location.format(mark=mark)
    if place == "split" and not names_tars(location) and "://" not in location:
        location += ",a.tar"
    with pytest.raises(UserError, match=message):
        find_split(*((location, "train") if place == "root" else (tmp_path, location)))
    with pytest.raises(UserError, match=message):
        ShardData(location if place == "root" else str(tmp_path), train_split=location)._find("train")
    assert not mark.exists()


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def test_pickles_in_tars_are_skipped_and_keys_are_not_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bomb = pickle.dumps(Bomb())
    kinds = ("pyd", "pkl", "pickle", "pth", "pt", "npy", "npz", "cbor", "sh")
    members = {f"../../escape/x.{kind}": bomb for kind in kinds}
    members |= {"../../escape/x.jpg": make_image(1), "../../escape/x.txt": b"one", "only.pkl": bomb}
    members |= {f"{tmp_path}/absolute.jpg": make_image(2), f"{tmp_path}/absolute.json": b'{"caption": "two"}'}
    members |= {"__meta__/x.jpg": b"no sample"}
    path = write_tar(tmp_path / "in" / "a.tar", members)
    with tarfile.open(path, "a") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("link.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    found = samples(tmp_path / "in", "a.tar")
    assert [(s.captions, s.name) for s in found] == [
        (["one"], "../../escape/x"), (["two"], f"{tmp_path}/absolute")
    ]  # fmt: skip
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["in", "in/a.tar"]


@pytest.mark.parametrize(
    "path", ["../outside/0.tar", "/etc/0.tar", "https://host/0.tar", "train/../../0.tar", "~/0.tar"]
)
def test_a_manifest_may_only_list_files_below_its_folder(scenes, tmp_path, path):
    text = (scenes / "manifest.json").read_text().replace("train/000000.tar", path)
    (tmp_path / "manifest.json").write_text(text)
    for read in (lambda: find_split(tmp_path, "train"), lambda: verify(str(tmp_path)), lambda: show(str(tmp_path))):
        with pytest.raises(UserError, match="which is not below its folder"):
            read()


def test_a_manifest_may_only_list_splits_below_its_folder(scenes, tmp_path):
    text = (scenes / "manifest.json").read_text().replace('"test":', '"../test":')
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"names '../test', which is not below its folder"):
        verify(str(tmp_path))


@pytest.mark.parametrize("size", [512, 1000, 5 * 512, 20 * 512])
def test_a_truncated_tar_is_reported_when_it_is_counted(tmp_path, size):
    tar = downloaded(tmp_path, 1, stats=False) / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:size])
    with pytest.raises(
        UserError, match=r"could not read \S+ \S+00000.tar: .*(truncated|unexpected end|has no|bad|empty)|has no"
    ):
        find_split(tmp_path, "*.tar")


def test_samples_hidden_by_damage_are_not_silently_missing_from_the_count(tmp_path):
    tar = downloaded(tmp_path, 1, 3, stats=False) / "00000.tar"
    whole = tar.read_bytes()
    with tarfile.open(tar) as opened:
        second = opened.getmembers()[3].offset
    flipped, zeroed, squeezed = bytearray(whole), bytearray(whole), bytearray(gzip.compress(whole))
    flipped[second + 3] ^= 8
    zeroed[second : second + 512] = bytes(512)
    squeezed[-6] ^= 8  # in the checksum
    for damaged, message in (
        (flipped, "a header in it is damaged"),
        (whole[: second + 100], "a header in it is damaged"),
        (zeroed, "data follows the mark at its end"),
        (squeezed, "CRC check failed"),
    ):
        tar.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"could not read shard \S+00000.tar: {message}"):
            find_split(tmp_path, "*.tar")
    with pytest.raises(UserError, match="CRC check failed"):
        list(read_tar(tar))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "it is empty"), (b"<html><body>404", "is a web page"), (b"PK\3\4 a zip", "it is not a tar")],
)
def test_files_that_are_not_tars_are_reported(tmp_path, content, message):
    (tmp_path / "0.tar").write_bytes(content)
    with pytest.raises(UserError, match=rf"0\.tar.* {message}"):
        find_split(tmp_path, "0.tar")
    with pytest.raises(UserError, match=rf"0\.tar.* {message}"):
        list(read_tar(tmp_path / "0.tar"))


def test_paths_that_are_not_files_are_reported_by_name(tmp_path):
    tar = tmp_path / "0.tar"
    for make, message in (
        (lambda: tar.symlink_to("nowhere"), r"\S+0.tar does not exist"),  # as for data that has not been fetched yet
        (lambda: tar.symlink_to("0.tar"), r"could not read \S+0.tar: Too many levels of symbolic links"),
        (lambda: os.mkfifo(tar), "0.tar is not a file, but a pipe"),
        (tar.mkdir, r"could not read \S+0.tar: Is a directory"),
    ):
        make()
        with pytest.raises(UserError, match=message):
            find_split(tmp_path, "*.tar")
        tar.rmdir() if tar.is_dir() else tar.unlink()


def test_a_member_that_would_fill_the_memory_is_refused(tmp_path):
    header = tarfile.TarInfo("a.jpg")
    header.size = 2**30 + 1
    (tmp_path / "0.tar").write_bytes(header.tobuf() + bytes(10_240))
    with pytest.raises(UserError, match=r"a.jpg has 1,073,741,825 bytes"):
        find_split(tmp_path, "0.tar")


def test_skipping_reads_no_images_and_loses_none(tmp_path):
    place = find_split(downloaded(tmp_path, 1), "*.tar").shards[0].place
    whole = [sample.name for sample in read_tar(place)]
    for skip in range(7):
        assert [sample.name for sample in read_tar(place, skip)] == whole[skip:]
    assert count_tar(place) == (5, 5)


def test_training_does_not_validate_on_its_training_tars(tmp_path):
    downloaded(tmp_path, 2)
    data = ShardData(f"{tmp_path}/*.tar")
    assert data._find("train").images == data._find("test").images == 10
    with pytest.raises(UserError, match="training and validation would use the same images"):
        data._find("val")
    own = ShardData(f"{tmp_path}/00000.tar", val_split=f"{tmp_path}/00001.tar")
    assert own._find("val").images == 5
    assert own.positives("val") is None


def test_positives_belong_to_folders(scenes):
    pairs = read_positives(scenes, "test")
    assert pairs is not None
    assert len(pairs[0]) == len(pairs[1])
    assert read_positives(f"{scenes}/test/*.tar", "test") is None
    assert read_positives(scenes, "none") is None


def test_damage_anywhere_is_reported_or_harmless(tmp_path):
    place = find_split(downloaded(tmp_path, 1, 3), "*.tar").shards[0].place
    tar = Path(place.location)
    whole = tar.read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    rng = random.Random(0)
    for cut in range(0, end, 512):
        tar.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"00000\.tar"):
            count_tar(place)
    messages = []
    for _ in range(300):
        damaged_bytes = bytearray(whole)
        for _ in range(3):
            damaged_bytes[rng.randrange(end)] ^= 1 << rng.randrange(8)
        tar.write_bytes(damaged_bytes)
        try:
            assert len(list(read_tar(place))) <= 3
        except UserError as error:
            messages.append(str(error))
    assert messages
    assert all("00000.tar" in message for message in messages)


def both(tar: str, *keys: str) -> dict[str, bytes]:
    return {
        f"{key}.{kind}": make_image(1) if kind == "jpg" else b"in " + tar.encode()
        for key in keys
        for kind in ("jpg", "txt")
    }


def test_the_same_keys_in_two_tars_are_two_images(tmp_path):
    for tar in ("0", "1"):
        write_tar(tmp_path / f"{tar}.tar", both(tar, "a", "b"))
    found = samples(tmp_path, "*.tar")
    assert len({sample.image_id for sample in found}) == len({i for s in found for i in s.caption_ids}) == 4


@pytest.mark.parametrize("stated", [None, 2])
@pytest.mark.parametrize(
    ("members", "message"),
    [
        (["a.jpg", "b.jpg", "a.txt", "b.txt"], "0.tar:a has no caption"),  # not adjacent
        (["a.x.jpg", "a.x.txt", "b.y.jpg", "b.y.txt"], "0.tar:a has no (caption|image)"),  # keys with dots
        (["a.1.jpg", "a.1.txt", "a.2.jpg", "a.2.txt"], "0.tar:a has no (caption|image)"),
        (["a.jpg", "a.txt", "a.jpg", "a.txt"], "holds a.jpg twice"),
    ],
)
def test_members_that_do_not_form_samples_are_refused_by_name(tmp_path, members, message, stated):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in members:
            data = make_image(1) if name.endswith("jpg") else b"text"
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    if stated:  # so that the fault appears only when the tar is read
        (tmp_path / "0_stats.json").write_text('{"successes": 2}')
    with pytest.raises(UserError, match=message):
        list(read_tar(find_split(tmp_path, "0.tar").shards[0].place))


def test_a_folder_without_a_test_split_says_how_to_measure_on_another(tmp_path):
    (tmp_path / "manifest.json").write_text(
        json.dumps(
            {
                "format": "itr-shards/1",
                "source": "x",
                "fields": [],
                "splits": {"train": {"shards": []}, "val": {"shards": []}},
            }
        )
    )
    with pytest.raises(
        UserError, match=r"no split 'test' \(it has: train, val\); .* --data.test_split val or --split val"
    ):
        find_split(tmp_path, "test")
    with pytest.raises(UserError, match=r"no split 'tset' \(it has: train, val\)$"):
        find_split(tmp_path, "tset")
