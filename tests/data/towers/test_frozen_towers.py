"""Outputs of frozen towers, kept in files: training on them is training with the towers, and nothing stale is used."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from itr.backbones import VSE
from itr.cli import main
from itr.data.features.headers import Header
from itr.data.loading.pipeline import ShardLoader, ShardStream
from itr.data.shards.locations import find_split
from itr.data.shards.tars import read_tar
from itr.data.sources.scenes import prepare_scenes
from itr.data.towers.choice import Choice, choose
from itr.data.towers.encoding import Decoding, Job, keep_outputs
from itr.errors import UserError
from itr.images.transforms import Augmentation, EvaluationTransform, read_view
from launching import ENOUGH, Run
from launching import fit as launched
from loaders import read_options, small_backbone
from soak import differences, final
from third_party import make_image, write_tar
from tiny import TINY_CLIP, TINY_DUAL, TINY_VSE
from tiny_teachers import save_image_teacher, save_text_teacher
from training_runs import checkpoint

FROZEN = ["--model.backbone.freeze_vision=true", "--model.backbone.freeze_text=true", "--model.backbone.word_mask=0"]
POOLED = [
    "--model.backbone.image_pooling=tower_mean",
    "--model.backbone.text_pooling=tower_mean",
    "--model.backbone.head_width=16",
]
AS_IS = ["--data.augmentation.crop_scale=[1, 1]"]
AS_SEEN = Augmentation(crop_scale=(1.0, 1.0))
RUN = [
    "--data.batch_size=8", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1", "--trainer.max_epochs=2", "--data.num_workers=0",
]  # fmt: skip


def fit(shards: Path, folder: Path, *options: str) -> int:
    where = [f"--data.root={shards}", f"--trainer.default_root_dir={folder}"]
    return main(["fit", *TINY_VSE, *FROZEN, *AS_IS, *RUN, *where, *options])


def losses(folder: Path) -> list[float]:
    """Of each step, and the recalls of each epoch."""
    with sorted((folder / "logs").rglob("metrics.csv"))[-1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [float(row[name]) for name in ("train/loss", "val/rsum") for row in rows if row.get(name)]


@pytest.fixture
def shards(scenes: Path, tmp_path: Path) -> Path:
    return shutil.copytree(scenes, tmp_path / "shards")


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param([*POOLED, "--model.backbone.head_dropout=0.3"], id="pooled"),
        pytest.param(
            ["--model.backbone.visual_token_drop=0.2", "--model.backbone.word_dropout=0.1"],
            id="tokens",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_training_on_kept_outputs_is_training_with_the_live_towers(shards, tmp_path, kind):
    found = {}
    for cache in ("false", "true", "float32"):
        extra = [f"--data.towers={tmp_path / f'towers {cache}'}"]
        assert fit(shards, tmp_path / cache, *kind, f"--model.backbone.cache={cache}", *extra) == 0
        found[cache] = losses(tmp_path / cache)
    live = found["false"]
    assert len(live) == 12
    np.testing.assert_allclose(found["float32"], live, rtol=2e-6)
    np.testing.assert_allclose(found["true"][:10], live[:10], rtol=2e-3)
    assert found["true"][:10] != live[:10]  # half precision was used
    assert {path.name for path in (tmp_path / "towers true" / "train").iterdir()} >= {"image.npy", "text.npy"}
    assert not (tmp_path / "towers false").exists()


@pytest.mark.parametrize(
    "model",
    [
        pytest.param([*TINY_CLIP, "--model.backbone.freeze=[visual]"], id="CLIP"),
        pytest.param([*TINY_DUAL, "--model.backbone.freeze_vision=true"], id="Dual"),
    ],
)
def test_the_images_of_a_pretrained_pair_are_embedded_once(shards, tmp_path, model):
    found = {}
    for cache in ("false", "true", "float32"):
        where = [f"--data.root={shards}", f"--trainer.default_root_dir={tmp_path / cache}"]
        towers = f"--data.towers={tmp_path / f'towers {cache}'}"
        assert main(["fit", *model, *AS_IS, *RUN, *where, towers, f"--model.backbone.cache={cache}"]) == 0
        found[cache] = losses(tmp_path / cache)
    np.testing.assert_allclose(found["float32"], found["false"], rtol=2e-6)
    np.testing.assert_allclose(found["true"][:10], found["false"][:10], rtol=2e-3)
    assert found["true"][:10] != found["false"][:10]  # half precision was used
    header = Header.read(tmp_path / "towers true" / "train" / "image.json")
    assert (header.rows, header.width) == (44, 16)  # no patches
    assert not (tmp_path / "towers true" / "train" / "text.json").exists()


METHODS = {
    "CUSA": ["--model.methods+=CUSA", "--model.methods.teachers.text={made}/text_teacher",
             "--model.methods.teachers.image={made}/image_teacher"],
    "D2S": ["--model.methods+=D2S", "--model.methods.num_prompts=3", "--model.methods.depth=1"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_methods_train_on_kept_outputs_as_on_live_towers(shards, tmp_path, method):
    save_text_teacher(tmp_path / "text_teacher", ["a red circle left of a blue square"])
    save_image_teacher(tmp_path / "image_teacher")
    options = [option.format(made=tmp_path) for option in METHODS[method]]
    for cache in ("false", "float32"):
        assert fit(shards, tmp_path / cache, f"--model.backbone.cache={cache}", *options) == 0
    np.testing.assert_allclose(losses(tmp_path / "float32"), losses(tmp_path / "false"), rtol=5e-6)


@pytest.mark.slow
def test_two_processes_share_the_work_and_train_as_with_live_towers(shards, tmp_path):
    found = []
    for cache in ("false", "float32"):
        with Run(tmp_path / f"log {cache}") as run:
            options = ["--trainer.devices=2", "--trainer.max_epochs=2", f"--model.backbone.cache={cache}"]
            run.start(launched(shards, tmp_path / cache, *FROZEN, *POOLED, *AS_IS, *options))
            assert run.statuses(ENOUGH) == [0], run.said()
        found.append(checkpoint(tmp_path / cache)["state_dict"])
    for name, live in found[0].items():
        torch.testing.assert_close(found[1][name], live, rtol=1e-4, atol=1e-6, msg=name)
    assert fit(shards, tmp_path / "one", *POOLED, "--model.backbone.cache=float32", "--trainer.fast_dev_run=1") == 0
    header = Header.read(shards / ".towers" / "train" / "image.json")
    assert (header.rows, header.width, header.dtype) == (44, 32, "float32")


@pytest.mark.slow
def test_a_stopped_run_resumes_on_its_outputs_to_the_same_end(shards, tmp_path):
    more = [*POOLED, "--model.backbone.head_dropout=0.3"]
    stop = ["--trainer.callbacks+=training_runs.SignalAt", "--trainer.callbacks.hook=on_train_batch_start"]
    assert fit(shards, tmp_path / "whole", *more) == 0
    assert fit(shards, tmp_path / "stopped", *more, *stop, "--trainer.callbacks.step=2") == 143
    before = (shards / ".towers" / "train" / "image.npy").stat().st_mtime_ns
    assert fit(shards, tmp_path / "stopped", *more, "--ckpt_path=last") == 0
    assert (shards / ".towers" / "train" / "image.npy").stat().st_mtime_ns == before
    assert not differences(final(tmp_path / "whole"), final(tmp_path / "stopped"))


def job(shards: Path, backbone: VSE) -> Job:
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    return Job(backbone, shards / ".towers", "train", find_split(shards, "train"), Decoding(0, 10**6, 0), trainer)


def small(**options: Any) -> VSE:
    torch.manual_seed(0)
    return small_backbone(freeze_vision=True, freeze_text=True, word_mask=0.0, **options)


ALL = Choice(("image", "text"), "float32")


def test_what_is_kept_is_what_the_towers_return_for_each_image_and_caption(shards):
    backbone = small()
    found = keep_outputs(ALL, job(shards, backbone))
    samples = [sample for shard in find_split(shards, "train").shards for sample in read_tar(shard.place)]
    transform, sample = EvaluationTransform(backbone.image_spec), samples[20]
    with torch.inference_mode():
        pixels = read_view(sample.image, 10**6, transform)
        image, text = backbone.image_output(pixels[None]), backbone.tokenizer(sample.captions)
        words = backbone.text_output(text)
    kept, hashes = found["image"].images([sample.image_id, samples[0].image_id])
    torch.testing.assert_close(kept[:1], image)
    assert hashes[0] != hashes[1]
    kept, tokens = found["text"].texts(sample.caption_ids)
    assert torch.equal(tokens.mask, text.mask)
    torch.testing.assert_close(kept[text.mask], words[text.mask])
    assert len({int(row[0]) for row in tokens.ids}) == len(set(sample.captions))


def change_the_tower(backbone: VSE, shards: Path) -> None:
    with torch.no_grad():
        next(backbone.vision_tower.parameters()).add_(0.1)


def change_the_pixels(backbone: VSE, shards: Path) -> None:
    backbone.set_image_spec(backbone.image_spec.override((0.1, 0.1, 0.1), None, None, None))


def change_the_data(backbone: VSE, shards: Path) -> None:
    prepare_scenes(str(shards), train=44, val=13, test=17, captions=(2, 4), image_size=32, shard_size=9, seed=5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "name"),
    [(change_the_tower, "tower"), (change_the_pixels, "preprocessing"), (change_the_data, "data set")],
)
@pytest.mark.parametrize("state", ["complete", "begun"])
def test_outputs_of_something_else_are_refused_by_name(shards, monkeypatch, change, name, state):
    if state == "begun":
        interrupt(monkeypatch, "image_output", 0, shards)
    else:
        keep_outputs(ALL, job(shards, small()))
    other = small()
    if change is change_the_data:
        kept = shards.with_name("kept")
        (shards / ".towers").rename(kept)
        shutil.rmtree(shards)
        change(other, shards)
        kept.rename(shards / ".towers")
    else:
        change(other, shards)
    with pytest.raises(UserError, match=rf"image.npy holds the outputs of another {name} than this run has; remove"):
        keep_outputs(ALL, job(shards, other))


def interrupt(monkeypatch: pytest.MonkeyPatch, side: str, after: int, shards: Path) -> None:
    """Interrupt a pass at a later chunk; the first call finds the shape of an output."""
    encode, calls = getattr(VSE, side), count()

    def run(self: VSE, inputs: Any) -> torch.Tensor:
        if next(calls) > after:
            raise KeyboardInterrupt
        found: torch.Tensor = encode(self, inputs)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(VSE, side, run)
        with pytest.raises(KeyboardInterrupt):
            keep_outputs(ALL, job(shards, small()))


@pytest.mark.slow
def test_an_interrupted_pass_is_continued_to_the_same_bytes(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("itr.data.towers.encoding.CHUNK", 8)
    whole = shutil.copytree(shards, tmp_path / "whole")
    keep_outputs(ALL, job(whole, small()))
    for side in ("image_output", "text_output"):
        interrupt(monkeypatch, side, 3, shards)
    keep_outputs(ALL, job(shards, small()))
    files = {path.name: path.read_bytes() for path in (whole / ".towers" / "train").glob("*.npy")}
    assert files == {path.name: path.read_bytes() for path in (shards / ".towers" / "train").glob("*.npy")}
    assert len(files) == 10
    monkeypatch.setattr("itr.data.towers.encoding._lengths", None)  # complete files say how many words there are
    again, first = keep_outputs(ALL, job(shards, small()))["text"], keep_outputs(ALL, job(whole, small()))["text"]
    assert torch.equal(again.texts(again.ids.tolist())[0], first.texts(first.ids.tolist())[0])


@pytest.mark.parametrize(
    ("cache", "freeze", "augmentation", "sides"),
    [
        (None, ("image", "text"), AS_SEEN, ("image", "text")),
        (None, ("image", "text"), Augmentation(), ()),
        (None, ("image",), AS_SEEN, ()),
        (False, ("image", "text"), AS_SEEN, ()),
        (True, ("image",), AS_SEEN, ("image",)),
        (True, ("text",), Augmentation(), ("text",)),
    ],
)
def test_which_outputs_are_kept(cache, freeze, augmentation, sides):
    backbone = small_backbone(freeze_vision="image" in freeze, freeze_text="text" in freeze, word_mask=0, cache=cache)
    assert choose(backbone, augmentation, "captions").sides == sides


@pytest.mark.parametrize(
    ("options", "augmentation", "texts", "told"),
    [
        ({}, AS_SEEN, "captions", "none can be kept: freeze the vision tower"),
        ({"freeze_text": True}, AS_SEEN, "captions", "the text tower with word_mask 0"),
        ({"freeze_vision": True}, Augmentation(), "captions", "data.augmentation changes the image in each epoch"),
        ({"freeze_text": True, "word_mask": 0.0}, AS_SEEN, "dense", "but data.texts is dense"),
    ],
)
def test_outputs_that_would_change_are_not_kept(options, augmentation, texts, told):
    with pytest.raises(UserError, match=told):
        choose(small_backbone(cache=True, **options), augmentation, texts)


def test_an_image_that_cannot_be_decoded_is_skipped_as_without_the_files(tmp_path):
    images = {f"{key}.jpg": make_image(number) for number, key in enumerate("abcd")} | {"b.jpg": b"no image"}
    members = {
        name: data for key in "abcd" for name, data in ((f"{key}.jpg", images[f"{key}.jpg"]), (f"{key}.txt", b"x"))
    }
    write_tar(tmp_path / "train" / "0.tar", members)
    backbone, strict = small(), job(tmp_path, small())
    with pytest.raises(UserError, match="could not be decoded"):
        keep_outputs(ALL, replace(strict, backbone=backbone))
    found = keep_outputs(ALL, replace(strict, backbone=backbone, decoding=replace(strict.decoding, max_skipped=1)))
    reading = read_options(strict.split)
    transform = EvaluationTransform(backbone.image_spec)
    streams = [ShardStream(reading, True, transform, backbone.tokenizer, 0, 1, outputs=kept) for kept in (found, {})]
    kept, live = (next(iter(ShardLoader(stream, lambda: (0, 0), num_workers=0))) for stream in streams)
    assert [stream.skipped for stream in streams] == [1, 1]
    for name in ("image_id", "text_id", "image_index", "content_id"):
        assert torch.equal(getattr(kept, name), getattr(live, name))
    assert kept.image.shape == (4, 1)
    assert len(kept.image.unique()) == 3
