"""Regression tests for faults found by fuzzing: untrusted input is refused with a clear message and never executed."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fuzz_checkpoints
import judging
from itr.checkpoints import open_checkpoint
from itr.cli import main
from itr.component import INSTANTIATOR, check_description
from itr.data.features.array_pickle import read_npy_header
from itr.data.features.headers import FORMAT
from itr.data.features.imported import open_vectors
from itr.data.features.stored import FeatureFile
from itr.data.loading.dense_texts import DenseTexts
from itr.data.raw.dense import attach_dense
from itr.data.shards.locations import find_split, read_positives
from itr.data.shards.schema import Manifest
from itr.data.shards.tars import read_tar
from itr.data.sources.coco import Coco
from itr.data.sources.flickr30k import Flickr30K
from itr.data.sources.table import Table
from itr.embedding.files import load_embeddings
from itr.errors import UserError
from itr.interop import cusa, d2s
from itr.methods import CUSA
from itr.module import RetrievalModule
from judging import Bug, Target, check
from raw_trees import write_json
from third_party import make_image, write_tar
from tiny import save_checkpoint

DEEP = "[" * 100_000


def one_sample(folder: Path, meta: bytes) -> Any:
    [sample] = read_tar(write_tar(folder / "0.tar", {"0.jpg": make_image(0), "0.json": meta}))
    return sample


@pytest.mark.parametrize(
    "meta",
    [b"7", b"[]", b"null", b'"text"', DEEP.encode(), b'{"captions": ["a"], "caption_ids": {"0": 1}}',
     b'{"captions": ["a"], "caption_ids": [null]}', b'{"captions": ["a"], "caption_ids": [1e400]}'],
)  # fmt: skip
def test_a_sample_whose_json_is_not_an_object_or_has_invalid_ids(tmp_path, meta):
    with pytest.raises(
        UserError, match=r"prepare the shards again|needs caption_ids that are a list of 1 whole numbers"
    ):
        one_sample(tmp_path, meta)


@pytest.mark.parametrize("number", [-1, 2**63, True, None, 0.5, "7"])
def test_an_image_id_out_of_range_is_replaced_by_a_hash_of_the_key(tmp_path, number):
    sample = one_sample(tmp_path, json.dumps({"captions": ["a", 7, None], "image_id": number}).encode())
    assert sample.captions == ["a"]
    assert 0 < sample.image_id < 2**63


@pytest.mark.parametrize("captions", [7, {"a": "b"}, True])
def test_captions_of_a_wrong_type_are_ignored(tmp_path, captions):
    assert one_sample(tmp_path, json.dumps({"captions": captions}).encode()).captions == [""]


@pytest.mark.parametrize("name", ["x" * 256, "a/" * 1500, "a\0b", "\ud800"])
def test_a_manifest_with_names_that_no_file_system_allows(name):
    shard = {"path": "train/0.tar", "images": 1, "captions": 1}
    text = {"format": "itr-shards/1", "source": "x", "fields": []}
    for splits in ({name: {"shards": [shard]}}, {"train": {"shards": [shard | {"path": f"{name}.tar"}]}}):
        with pytest.raises(UserError, match="is not a manifest"):
            Manifest.parse(json.dumps(text | {"splits": splits}).encode(), "here")


@pytest.mark.parametrize("change", [{"path": None}, {"path": ["a"]}, {"images": []}, {"captions": -1}, {"bytes": "9"}])
def test_a_manifest_whose_shards_have_invalid_values(change):
    shard = {"path": "train/0.tar", "images": 1, "captions": 1, "bytes": 9, "sha256": ""} | change
    text = {"format": "itr-shards/1", "source": "x", "fields": [], "splits": {"train": {"shards": [shard]}}}
    for data in (json.dumps(text), DEEP):
        with pytest.raises(UserError, match="is not a manifest"):
            Manifest.parse(data.encode(), "here")


@pytest.mark.parametrize("split", ["**8", "x**/*.tar", "~nobody-of-that-name/*.tar", "~no\0body/*.tar",
    f"{'x' * 300}/*.tar", f"{'x' * 300}.tar", "x" * 300])  # fmt: skip
def test_impossible_patterns(tmp_path, split):
    with pytest.raises(UserError, match=r"no pattern of tars|could not expand|no shards match|could not search for"):
        find_split(tmp_path, split)


@pytest.mark.parametrize("damage", ["cut", "text", "other names", "floats", "objects", "lengths"])
def test_damaged_true_matches(tmp_path, damage):
    ids, stream = np.arange(3), io.BytesIO()
    arrays = {
        "floats": {"image_id": ids / 2, "caption_id": ids}, "lengths": {"image_id": ids, "caption_id": ids[:1]},
        "objects": {"image_id": np.array([{}, []], dtype=object), "caption_id": ids}, "other names": {"a": ids},
    }.get(damage, {"image_id": ids, "caption_id": ids})  # fmt: skip
    np.savez(stream, **arrays)
    data = {"cut": stream.getvalue()[:200], "text": b"text"}.get(damage, stream.getvalue())
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "positives.npz").write_bytes(data)
    with pytest.raises(UserError, match="not a list of true matches"):
        read_positives(tmp_path, "val")


@pytest.mark.parametrize(
    ("name", "text"),
    [("t.json", "null"), ("t.json", "[null]"), ("t.json", '{"a": 1}'), ("t.json", DEEP), ("t.jsonl", DEEP),
     ("t.json", '[{"image": "a.jpg", "caption": "x", "split": "train"}, {"image": "b.jpg", "caption": "x"}]'),
     ("t.parquet", "PAR1 no more PAR1"), ("t.csv", "image,caption,split\na.jpg,b\n")],
)  # fmt: skip
def test_malformed_tables(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=name):
        Table(str(tmp_path / name)).read()


def test_a_parquet_table_with_a_damaged_page(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([{"image": "a.jpg", "caption": "x"}]), tmp_path / "t.parquet")
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    data[4:40] = b"\xff" * 36
    (tmp_path / "t.parquet").write_bytes(data)
    with pytest.raises(UserError, match="Parquet"):
        Table(str(tmp_path / "t.parquet")).read()


@pytest.mark.parametrize("change", [{"split": ["test"]}, {"filename": None}, {"filepath": [1]}])
def test_names_in_karpathys_json_that_are_not_strings(tmp_path, change):
    image = {"filename": "a.jpg", "split": "test", "sentences": [{"raw": "x"}]} | change
    write_json(tmp_path / "dataset_flickr30k.json", {"images": [image]})
    with pytest.raises(UserError, match="must be strings"):
        Flickr30K(str(tmp_path)).read()


@pytest.mark.parametrize(
    "change", [{"file_name": None}, {"annotation": "\u200b"}, {"annotation": None}, {"split": [1]}]
)
def test_invalid_ids_and_file_names_in_coco(tmp_path, change):
    image = {"id": 1, "file_name": change.get("file_name", "a.jpg")}
    annotation = {"id": change.get("annotation", 5), "image_id": 1, "caption": "x"}
    write_json(tmp_path / "captions_train2014.json", {"images": [image], "annotations": [annotation]})
    named = {"filename": "a.jpg", "split": "train", "sentences": [], "cocoid": change.get("split", 1)}
    write_json(tmp_path / "dataset_coco.json", {"images": [named]})
    with pytest.raises(UserError, match=r"captions_train2014|COCO image ids"):
        Coco(str(tmp_path), layout="official").read()


def test_two_annotations_of_coco_with_the_same_id(tmp_path):
    annotations = [{"id": 5, "image_id": 1}, {"id": 5, "image_id": 1, "caption": "x"}]
    write_json(
        tmp_path / "captions_train2014.json",
        {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": annotations},
    )
    write_json(tmp_path / "dataset_coco.json", {"images": []})
    with pytest.raises(UserError, match="an annotation or image has no 'caption'"):
        Coco(str(tmp_path), layout="official").read()


@pytest.mark.parametrize("content", [b'{"image": "0.png", "dense": "\xff"}\n', b"7\n", DEEP.encode()])
def test_malformed_dense_tables(tmp_path, content):
    write_json(tmp_path / "t.json", [{"image": "0.png", "caption": "x", "split": "train"}])
    (tmp_path / "d.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"d\.jsonl"):
        attach_dense(Table(str(tmp_path / "t.json")).read(), str(tmp_path / "d.jsonl"))


HEADER = {"teacher": "t", "modality": "image", "width": 2, "rows": 1, "data": "d", "format": FORMAT}


@pytest.mark.parametrize("change", [{"teacher": {}}, {"settings": None}, {"width": 0}, {"rows": -1}, {"rows": True}])
def test_feature_headers_with_invalid_values(tmp_path, change):
    write_json(tmp_path / "train" / "image.json", HEADER | change)
    with pytest.raises(UserError, match="is not a feature header"):
        FeatureFile.open(tmp_path, "train", "image", "d", "shards")


def test_numpy_files_whose_header_is_not_valid_python(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 2), np.float16))
    data = (tmp_path / "x.npy").read_bytes().replace(b"), }", b"(, }")
    write_json(tmp_path / "train" / "image.json", HEADER)
    for name in ("image.npy", "image_ids.npy"):
        (tmp_path / "train" / name).write_bytes(data)
    with pytest.raises(UserError, match="are not usable"):
        FeatureFile.open(tmp_path, "train", "image", "d", "shards")
    with pytest.raises(ValueError, match="no array header"):
        read_npy_header(io.BytesIO(data))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-1])
    with pytest.raises(UserError, match=r"could not read .* as an array"):
        open_vectors(tmp_path / "cut.npy", "image", trust_pickle=False)


@pytest.mark.parametrize("row", [{"image_id": 2**70, "text": "x"}, {"image_id": 1}, {"image_id": 1, "text": None}, 7])
@pytest.mark.parametrize("header", [{}, {"data": "other"}])
def test_malformed_dense_captions_next_to_shards(tmp_path, row, header):
    write_json(tmp_path / "train" / "dense.json", {"format": "itr-dense/1", "rows": 1} | header)
    (tmp_path / "train" / "dense.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="run `itr densify` again"):
        DenseTexts.open(tmp_path, "train", "d")


@pytest.mark.parametrize("unimodal", [np.float16(0), np.zeros((2, 3)), np.zeros((3, 2), np.int64)])
def test_unimodal_embeddings_of_a_wrong_shape(tmp_path, unimodal):
    one = {"image": np.ones((3, 2)), "text": np.ones((3, 2)), "image_id": np.arange(3), "caption_id": np.arange(3)}
    np.savez(tmp_path / "e.npz", **one, caption_image_id=np.arange(3), image_unimodal=unimodal)
    with pytest.raises(UserError, match="image_unimodal has shape"):
        load_embeddings(tmp_path / "e.npz")


@pytest.mark.parametrize(("read", "saved"), [
    (cusa.read_cusa_model, {"model": {"a": None}, "config": {"loss_config": {}}}),
    (cusa.read_cusa_model, {"model": 7, "config": None}),
    (d2s.read_d2s_model, {"model": 7, "opt": {}}), (d2s.read_d2s_model, {"model": {"a": None}, "opt": 7}),
])  # fmt: skip
def test_published_checkpoints_with_values_of_wrong_types(tmp_path, read, saved):
    torch.save(saved, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"is not a (D2S-VSE )?checkpoint"):
        read(tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.pth"):
        read(tmp_path / "a.pth")


def test_names_that_the_terminal_cannot_show_do_not_stop_a_command(tmp_path, monkeypatch):
    write_json(tmp_path / "t.json", [{"image": "🎈.jpg", "caption": "x", "split": "train"}])
    (tmp_path / "t.json").write_text((tmp_path / "t.json").read_text().replace("🎈", "\\ud800"))
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, io.TextIOWrapper(io.BytesIO(), "ascii"))
    arguments = ["prepare", "table", f"--root={tmp_path / 't.json'}", f"--out={tmp_path / 'out'}", "--bad_images=skip"]
    assert main(arguments) == 1
    sys.stdout.flush()
    assert b"\\ud800.jpg" in sys.stdout.buffer.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(
    "place", ["backbone", "objective", "methods", "arguments", "whole", "optimizer", "temperature"]
)
def test_a_checkpoint_does_not_import_the_modules_it_names(scenes, tmp_path, monkeypatch, place):
    (tmp_path / "itr_untrusted.py").write_text("raise SystemExit('untrusted code was run')\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = save_checkpoint(tmp_path, scenes)
    saved = torch.load(path, weights_only=True)
    parts, untrusted = saved["hyper_parameters"], {"class_path": "itr_untrusted.Bomb", "init_args": {}}
    if place == "arguments":
        parts["backbone"]["init_args"]["vision_config"]["more"] = [untrusted]
    elif place == "whole":
        parts["_class_path"] = "itr_untrusted.Bomb"
    elif place == "optimizer":  # a string is read as a class path wherever a class is expected
        parts[place] = "itr_untrusted.Bomb"
    elif place == "temperature":
        parts["methods"] = [CUSA().describe()]
        parts["methods"][0]["init_args"]["cross_temperature"] = "itr_untrusted.Bomb"
    else:
        parts[place] = [untrusted] if place == "methods" else untrusted
    torch.save(saved, path)
    for read in (open_checkpoint, RetrievalModule.load_from_checkpoint):
        with pytest.raises(UserError, match=r"which is not part of itr|not an itr checkpoint"):
            read(path)
    shards = [f"--data.root={scenes}", f"--trainer.default_root_dir={tmp_path}", "--trainer.accelerator=cpu"]
    assert main(["test", *shards, f"--ckpt_path={path}"]) == 1
    assert "itr_untrusted" not in sys.modules


@pytest.mark.parametrize(("component", "argument"), [
    ("itr.backbones.vse.VSE", "vision"), ("itr.backbones.vse.VSE", "tokenizer"),
    ("itr.backbones.clip.CLIP", "pretrained"),
])  # fmt: skip
def test_a_checkpoint_fetches_nothing(component, argument):
    loss = {"class_path": "itr.objectives.InfoNCE", "init_args": {}}
    backbone = {"class_path": component, "init_args": {argument: "somebody/something"}}
    parts = {"backbone": backbone, "objective": loss, "methods": [], "optimizer": {}, "_instantiator": INSTANTIATOR}
    with pytest.raises(UserError, match=f"names a {argument} to download or read"):
        check_description(parts, "x.ckpt")
    backbone["init_args"][argument] = None
    assert check_description(parts, "x.ckpt") is parts
    with pytest.raises(UserError, match="its model is not built by"):
        check_description({**parts, "_instantiator": "builtins.print"}, "x.ckpt")


def test_the_judge_notices_forbidden_actions(tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "SECONDS", 0.1)

    def endless(*_: object) -> None:
        while True:
            pass

    acts = {
        "ZeroDivisionError": lambda *_: 1 // 0,
        "wrote": lambda *_: (tmp_path / "x").write_text("outside"),
        "os.mkdir": lambda *_: (tmp_path / "y").mkdir(),
        "started a program": lambda *_: __import__("subprocess").run(["true"], check=True),
        "hangs": endless,
        "not so": lambda *_: check(False, "not so"),
    }
    for message, act in acts.items():
        with pytest.raises(Bug, match=message):
            Target("a target", lambda: None, act).judge(None)
    assert Target("fine", lambda: None, lambda _, folder: (folder / "x").write_text("inside")).judge(None) == "clean"


@pytest.mark.slow
@pytest.mark.parametrize(("part", "name"), [
    ("text_cfg", "hf_model_name"), ("text_cfg", "hf_tokenizer_name"), ("vision_cfg", "timm_model_name"),
])  # fmt: skip
def test_a_config_in_a_checkpoint_brings_nobody_to_the_network(part, name):
    config: dict[str, Any] = {"embed_dim": 8, "vision_cfg": {"image_size": 32}, "text_cfg": {"vocab_size": 49408}}
    config[part][name] = "hf-hub:somebody/something" if part == "vision_cfg" else "somebody/something"
    [target] = [target for target in fuzz_checkpoints.TARGETS if target.name == "names to fetch in checkpoints"]
    example = ("backbone", "itr.backbones.clip.CLIP", {"config": config}, "dictionary")
    assert target.judge(example) == "UserError"
