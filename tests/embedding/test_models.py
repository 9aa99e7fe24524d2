"""Every verb that takes a checkpoint opens other models too, all by their names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from itr.backbones.towers.clip_loading import build_clip
from itr.checkpoints import open_checkpoint
from itr.cli import main
from itr.commands.inputs import chosen_model
from itr.commands.order import present_names
from itr.embedding.models import open_embedder, open_model
from itr.errors import UserError
from itr.weights.packages import find_package
from tiny_duals import save_dual
from tiny_teachers import save_image_teacher, save_text_teacher
from weight_files import TINY_CLIP_CONFIG

VISION, TEXT = "offline/efficientnet_lite0", "offline/all-minilm-l6-v2"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of open_clip in a folder."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    save_file(build_clip(TINY_CLIP_CONFIG, None, None).state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": TINY_CLIP_CONFIG, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    )
    return f"open_clip:local-dir:{folder}"


@pytest.fixture
def words(tmp_path: Path) -> str:
    (tmp_path / "words.txt").write_text("a red ball\ntwo dogs\n")
    return str(tmp_path / "words.txt")


def embed(out: Path, *options: str) -> dict[str, np.ndarray]:
    assert main(["embed", f"--out={out}", "--num_workers=0", "--device=cpu", *options]) == 0
    with np.load(out, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.mark.slow
def test_a_checkpoint_and_its_run_folder_are_models(plain_checkpoint, words, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/last.ckpt").symlink_to(Path(plain_checkpoint).resolve())
    found = [
        embed(tmp_path / f"{at}.npz", "--texts", words, *options)["text"]
        for at, options in enumerate(
            [["--ckpt_path", plain_checkpoint], [f"--model={plain_checkpoint}"], ["--model", str(run)]]
        )
    ]
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


@pytest.mark.slow
def test_a_model_of_open_clip_embeds_lines_shards_and_scores(clip, scenes, words, tmp_path):
    module, identity = open_model(clip)
    assert identity.keys() == {"encoder", "weights"}
    lines = embed(tmp_path / "a.npz", "--model", clip, "--texts", words)
    with torch.inference_mode():
        wanted = module.encode_text(["a red ball", "two dogs"]).pooled
    np.testing.assert_allclose(lines["text"], wanted.numpy(), atol=1e-5)
    shards = embed(tmp_path / "b.npz", "--model", clip, "--data", str(scenes), "--split=val")
    assert shards["image"].shape == (13, module.backbone.dim)
    out = tmp_path / "t.json"
    options = ["--model", clip, "--data", str(scenes), "--split=val", "--num_workers=0", "--device=cpu"]
    assert main(["evaluate", "transfer", "--out", str(out), *options]) == 0
    figures = json.loads(out.read_text())
    assert figures["about"]["model"] == identity
    assert figures[f"transfer/{scenes.name}/rsum"] > 0


def test_a_dual_encoder_of_transformers_embeds_with_its_own_heads(words, tmp_path):
    folder = tmp_path / "dual"
    save_dual(folder, "siglip", tokenizer=folder)
    module, identity = open_model(str(folder))
    assert identity["encoder"] == "dual"
    found = embed(tmp_path / "a.npz", "--model", str(folder), "--texts", words)
    with torch.inference_mode():
        wanted = module.encode_text(["a red ball", "two dogs"]).pooled
    np.testing.assert_allclose(found["text"], wanted.numpy(), atol=1e-5)
    assert found["text"].shape == (2, 32)


def test_encoders_of_one_modality_embed_what_they_can(words, tmp_path, capsys):
    text = save_text_teacher(tmp_path / "text", ["a red ball", "two dogs"])
    assert embed(tmp_path / "a.npz", "--model", text, "--texts", words)["text"].shape == (2, 8)
    assert main(["embed", "--out", str(tmp_path / "b.npz"), "--model", text, "--data", str(tmp_path)]) == 1
    assert "only these embed both images and captions" in capsys.readouterr().err
    image = save_image_teacher(tmp_path / "image")
    embedder = open_embedder(image, ["image"], "cpu")
    assert embedder.encode_text is None
    with pytest.raises(UserError, match="only these embed both images and captions"):
        open_embedder(image, ["image", "text"], "cpu")


@pytest.mark.slow
def test_packaged_encoders_are_models(words, tmp_path):
    for name in (VISION, TEXT):
        try:
            find_package(name)
        except UserError as error:
            pytest.skip(str(error))
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (40, 30), "red").save(images / "red.png")
    assert embed(tmp_path / "a.npz", "--model", TEXT, "--texts", words)["text"].shape == (2, 384)
    assert embed(tmp_path / "b.npz", "--model", VISION, "--images", str(images))["image"].shape == (1, 1280)


def test_mistakes_are_named(checkpoint, tmp_path):
    for given in ((None, None), (checkpoint, "name")):
        with pytest.raises(UserError, match="give --ckpt_path CHECKPOINT or --model NAME, one of the two"):
            chosen_model(*given)
    with pytest.raises(UserError, match="batch_size is 0"):
        open_embedder(checkpoint, ["text"], "cpu", batch_size=0)
    for open_it in (open_model, lambda name: open_embedder(name, ["text"], "cpu")):
        with pytest.raises(UserError, match=r"checkpoint .*a\.ckpt does not exist"):
            open_it(str(tmp_path / "a.ckpt"))
    assert open_checkpoint(checkpoint).backbone.dim == open_model(checkpoint)[0].backbone.dim


def test_earlier_names_of_the_option_are_understood():
    given = ["evaluate", "sts", "--text_model=a", "--image_model", "b", "--out", "c"]
    assert present_names(given) == ["evaluate", "sts", "--model=a", "--model", "b", "--out", "c"]
    assert present_names(["fit", "--text_model", "a"]) == ["fit", "--text_model", "a"]
