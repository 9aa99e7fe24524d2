"""`itr densify`: a small LLaVA with random weights writes nonsense, but the same after any interruption."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from itr.cli import main
from itr.data.loading.dense_texts import DenseTexts
from itr.data.shards.locations import find_split
from itr.data.shards.schema import data_identity
from itr.data.shards.tars import read_tar
from itr.errors import UserError
from itr.passes import densify as module
from itr.passes.dense_writer import DenseWriter
from itr.passes.densify import densify
from tiny import TINY_VSE

WORDS = ["<pad>", "<unk>", "</s>", "<image>", "USER:", "ASSISTANT:", "Describe", "this", "image", "in", "detail."]
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("llava")
    words = [*WORDS, *(f"word{i}" for i in range(20))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "eos_token": "</s>",
        "additional_special_tokens": ["<image>"],
    }
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    side = {"height": 16, "width": 16}
    processor = LlavaProcessor(
        CLIPImageProcessor(size=side, crop_size=side), fast, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    processor.save_pretrained(folder)
    torch.manual_seed(0)
    vision = CLIPVisionConfig(image_size=16, patch_size=8, **SMALL)
    text = LlamaConfig(vocab_size=len(words), eos_token_id=None, pad_token_id=0, bos_token_id=None, **SMALL)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=3, vision_feature_layer=-1)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def shards(scenes: Path, tmp_path: Path) -> Path:
    """Scenes whose samples contain no dense captions."""
    from itr.data.shards.schema import Manifest
    from itr.data.shards.writer import Record, write_split

    splits = {}
    for split in ("train", "val"):
        samples = [s for shard in find_split(scenes, split).shards for s in read_tar(shard.place)]
        records = (Record(s.image, "png", s.captions, s.name) for s in samples)
        splits[split] = write_split(records, tmp_path / "shards", split, 16)
    Manifest("test", ["image", "captions"], splits).write(tmp_path / "shards")
    return tmp_path / "shards"


def run(shards: Path, llava: str, **options) -> list[str]:
    settings = {"max_new_tokens": 5, "num_workers": 0, "device": "cpu", "temperature": 1.0, **options}
    densify(str(shards), llava, **settings)
    path = shards / "train" / "dense.jsonl"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.slow
def test_captions_depend_neither_on_interruptions_nor_on_processes(shards, llava, tmp_path, monkeypatch, capsys):
    twin, third = tmp_path / "twin", tmp_path / "third"
    shutil.copytree(shards, twin)
    shutil.copytree(shards, third)
    whole = run(shards, llava)
    rows = [json.loads(line) for line in whole]
    assert [row["image_id"] for row in rows] == list(range(44))
    assert len({row["text"] for row in rows}) > 20
    assert run(twin, llava, process=1, of=2, num_workers=1) == []
    assert run(twin, llava, process=0, of=2) == whole
    calls, real = [], module.Describer.__call__

    def dies(self, images, seed):
        calls.append(len(images))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, images, seed)

    monkeypatch.setattr(module.Describer, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        run(third, llava)
    part = third / "train" / "dense.0.part"
    part.write_bytes(part.read_bytes()[:-9])  # the last line was being written
    assert run(third, llava) == whole
    assert calls == [8, 8, 8, 8, 8, 8, 8, 4]
    assert sorted(p.name for p in (third / "train").glob("*dense*")) == [".dense.lock", "dense.json", "dense.jsonl"]
    assert run(third, llava) == whole
    assert "already exists" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"already exists with settings .*--overwrite true"):
        run(third, llava, temperature=0.0)
    assert run(third, llava, temperature=0.0, overwrite=True) != whole


@pytest.mark.slow
def test_training_finds_dense_captions(shards, llava, tmp_path, capsys):
    fit = ["fit", f"--data.root={shards}", "--data.batch_size=8", "--data.num_workers=0", "--trainer.max_epochs=1"]
    fit += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", *TINY_VSE]
    d2s = ["--model.methods+=D2S", "--model.methods.num_prompts=2", "--model.methods.depth=1"]
    assert main([*fit, *d2s, f"--trainer.default_root_dir={tmp_path / 'no'}"]) == 1
    assert "itr densify" in capsys.readouterr().err
    assert main(["densify", "--data", str(shards), "--model", llava, "--max_new_tokens", "4", "--device", "cpu"]) == 0
    assert main([*fit, *d2s, f"--trainer.default_root_dir={tmp_path / 'd2s'}"]) == 0
    assert main([*fit, "--data.texts=dense", f"--trainer.default_root_dir={tmp_path / 'dense'}"]) == 0
    stage1 = tmp_path / "dense" / "checkpoints" / "last.ckpt"
    features = ["features", "--data", str(shards), "--modality", "dense", "--model", str(stage1)]
    assert main([*features, "--out", str(tmp_path / "features"), "--num_workers", "0"]) == 0


def test_dense_texts_of_other_shards_are_refused(shards, tmp_path):
    identity = data_identity(find_split(shards, "train"))
    assert DenseTexts.open(shards, "train", identity) is None
    writer = DenseWriter(shards / "train", {"model": "m", "settings": {}, "data": identity}, 2)
    writer.write(1, {7: 'line\nbreak "quoted" 猫', 5: "b"})
    assert not writer.finish()
    writer.write(0, {3: "c", 9: "d"})
    assert writer.finish()
    found = DenseTexts.open(shards, "train", identity)
    assert [found.text(i) for i in (3, 5, 7, 9, 4, 99)] == ["c", "b", 'line\nbreak "quoted" 猫', "d", None, None]
    with pytest.raises(UserError, match="other shards"):
        DenseTexts.open(shards, "train", "another")
    path = shards / "train" / "dense.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="could not read"):
        DenseTexts.open(shards, "train", identity)


def test_a_model_that_cannot_be_loaded(shards):
    with pytest.raises(UserError, match=r"could not load model /nowhere: the folder /nowhere does not exist"):
        densify(str(shards), "/nowhere", device="cpu")


@pytest.mark.slow
def test_only_runs_that_use_dense_texts_open_them(shards, tmp_path, capsys):
    writer = DenseWriter(shards / "train", {"model": "m", "settings": {}, "data": "of other shards"}, 1)
    writer.write(0, {3: "c"})
    assert writer.finish()
    fit = ["fit", f"--data.root={shards}", "--data.batch_size=8", "--data.num_workers=0", "--trainer.max_epochs=1"]
    fit += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", *TINY_VSE]
    assert main([*fit, f"--trainer.default_root_dir={tmp_path / 'plain'}"]) == 0
    for uses in ("--data.texts=dense", "--model.methods+=D2S"):
        assert main([*fit, uses, f"--trainer.default_root_dir={tmp_path / 'dense'}"]) == 1
        assert "dense.jsonl was made from other shards" in capsys.readouterr().err


def test_a_model_without_all_its_weights_is_refused(llava: str, tmp_path: Path) -> None:
    folder = tmp_path / "llava"
    shutil.copytree(llava, folder)
    saved = load_file(folder / "model.safetensors")
    wrapped = {f"module.{name}": value for name, value in saved.items()}
    save_file(wrapped, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"prompt": "Describe this image in detail."}

    model = module.Describer(str(folder), "cpu", "32", settings).model.state_dict()

    plain = module.Describer(llava, "cpu", "32", settings).model.state_dict()
    assert all(torch.equal(value, model[name]) for name, value in plain.items())
    kept = {name: value for name, value in saved.items() if "multi_modal_projector" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"vision-language model; missing: .*multi_modal_projector"):
        module.Describer(str(folder), "cpu", "32", settings)
