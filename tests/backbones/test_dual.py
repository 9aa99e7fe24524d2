"""Dual: embeddings, images and captions of transformers, token features, freezing, descriptions, messages."""

from __future__ import annotations

import functools
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from itr.backbones import Dual
from itr.backbones.dual.families import FAMILIES
from itr.cli import main
from itr.commands.quieten import quieten
from itr.errors import UserError
from itr.images.transforms import EvaluationTransform, rgb_tensor
from itr.types import Tokens
from tiny import copy_of
from tiny_duals import BIAS, DUALS, TEMPERATURE, processor, save_dual

CAPTIONS = ["a dog", "the big red dog runs on the mat", "", "a ball"]
NUM_TOKENS = {"siglip": 16, "align": 64}
WIDTH = {"siglip": 32, "align": 16}


@functools.cache
def first(name: str) -> Dual:
    torch.manual_seed(0)
    return Dual(config=DUALS[name])


def make(name: str = "clip", **arguments: Any) -> Dual:
    torch.manual_seed(0)
    return Dual(**{"config": DUALS[name], **arguments}) if arguments else copy_of(first(name))


def images(model: Dual, num: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 256, (num, 3, model.image_spec.size, model.image_spec.size), dtype=torch.uint8)


def pooled(model: Dual) -> tuple[Tensor, Tensor]:
    return model.encode_image(images(model)).pooled, model.encode_text(model.tokenizer(CAPTIONS)).pooled


def their_embeddings(name: str, model: Any, pixels: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The normalized embeddings of a model's own forward pass."""
    if name == "blip":
        output = model(input_ids=ids, pixel_values=pixels, attention_mask=mask, use_itm_head=False)
        image = nn.functional.normalize(model.vision_proj(output.last_hidden_state[:, 0]), dim=-1)
        text = nn.functional.normalize(model.text_proj(output.question_embeds[:, 0]), dim=-1)
        torch.testing.assert_close(output.itm_score, image @ text.T)
        return image, text
    masks = {} if name == "siglip" else {"attention_mask": mask}
    output = model(input_ids=ids, pixel_values=pixels, **masks)
    return output.image_embeds, output.text_embeds


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model"


@pytest.mark.parametrize("name", DUALS)
@torch.no_grad()
def test_embeddings_equal_those_of_transformers(folder: Path, tokenizer_folder: Path, name: str) -> None:
    from transformers import PreTrainedTokenizerFast

    reference = save_dual(folder, name, tokenizer_folder)
    model = Dual(model=str(folder)).eval()
    pixels = images(model, 3)
    tokens = model.tokenizer(CAPTIONS)
    words: Any = PreTrainedTokenizerFast.from_pretrained(folder)  # type: ignore[no-untyped-call]
    their = words(CAPTIONS, return_tensors="pt", padding="max_length" if name == "siglip" else True)

    assert torch.equal(tokens.ids, their["input_ids"])
    image, text = their_embeddings(name, reference, model.normalise(pixels), tokens.ids, tokens.mask.long())
    torch.testing.assert_close(model.encode_image(pixels).unit, image, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.encode_text(tokens).unit, text, rtol=1e-4, atol=1e-6)
    for side in (image, text):
        assert (side[0] - side[1]).abs().max() > 1e-3  # so that the comparison says something
    assert model.pretrained_temperature == (None if name == "blip" else pytest.approx(TEMPERATURE))
    assert model.pretrained_bias == (BIAS if name == "siglip" else None)
    assert model.untrained == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", DUALS)
@torch.no_grad()
def test_token_features_have_the_width_of_the_embedding(name: str) -> None:
    model = make(name).eval()
    image, text = model.encode_image(images(model)), model.encode_text(model.tokenizer(CAPTIONS))

    assert model.dim == WIDTH.get(name, 24)
    assert image.tokens.shape == (2, NUM_TOKENS.get(name, 17), model.dim)
    assert text.tokens.shape == (4, 64 if name == "siglip" else 10, model.dim)
    assert text.mask.sum(1).tolist() == [4, 10, 2, 4]
    if name == "align":
        torch.testing.assert_close(image.tokens.mean(1), image.pooled)
    elif name != "siglip":
        torch.testing.assert_close(image.tokens[:, 0], image.pooled)
    place = text.mask.sum(1) - 1 if FAMILIES[name].pools_at_end else torch.tensor(-1 if name == "siglip" else 0)
    torch.testing.assert_close(text.tokens[torch.arange(4), place], text.pooled)


@pytest.mark.parametrize("name", DUALS)
def test_every_trained_parameter_gets_a_gradient(name: str) -> None:
    model = make(name).train()

    torch.stack([side.square().sum() for side in pooled(model)]).sum().backward()

    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    unused = [key for key, p in model.named_parameters() if not p.requires_grad]
    assert all("pooler" in key for key in unused)
    assert not [key for key in model.state_dict() if "logit" in key or "temperature" in key or "cross" in key]


@pytest.mark.parametrize("name", DUALS)
@torch.no_grad()
def test_an_embedding_does_not_depend_on_its_batch(name: str) -> None:
    model = make(name).eval()
    together = model.encode_text(model.tokenizer(CAPTIONS)).pooled

    for row, caption in enumerate(CAPTIONS):
        alone = model.tokenizer([caption])
        torch.testing.assert_close(model.encode_text(alone).pooled[0], together[row], rtol=1e-4, atol=1e-5)
        if FAMILIES[name].masked:
            more = torch.randint(5, 99, (1, 5))
            mask = torch.cat([alone.mask, torch.zeros_like(more, dtype=torch.bool)], dim=1)
            longer = Tokens(ids=torch.cat([alone.ids, more], dim=1), mask=mask)
            torch.testing.assert_close(model.encode_text(longer).pooled[0], together[row], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", DUALS)
@torch.no_grad()
def test_a_description_needs_no_other_files(folder: Path, tokenizer_folder: Path, name: str) -> None:
    save_dual(folder, name, tokenizer_folder)
    model = Dual(model=str(folder), image_size=64).eval()
    stream = io.BytesIO()
    torch.save({"backbone": model.describe(), "weights": model.state_dict()}, stream)
    shutil.rmtree(folder)
    stream.seek(0)
    saved = torch.load(stream, weights_only=True)

    again = Dual(**saved["backbone"]["init_args"]).eval()
    again.load_state_dict(saved["weights"], strict=True)

    assert str(folder) not in str(saved["backbone"])
    assert again.describe() == model.describe()
    assert again.image_spec == model.image_spec
    text = model.tokenizer(["A dog, runs!"])
    assert torch.equal(text.ids, again.tokenizer(["A dog, runs!"]).ids)
    for left, right in zip(pooled(model), pooled(again), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def scenes() -> list[Image.Image]:
    """Smooth colors with hard edges, in the size of the model and in others."""
    made = []
    for width, height in ((90, 70), (60, 61), (32, 32), (38, 38)):
        x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
        colors = np.stack([255 * x, 255 * y, 127 + 127 * np.sin(20 * x * y)], axis=-1)
        colors[10:20, 15:30] = (250, 10, 20)
        made.append(Image.fromarray(colors.astype(np.uint8)))
    return made


def check_pixels(model: Dual, name: str, photos: list[Image.Image]) -> None:
    """The pixels of an image differ by at most 1 of 255 from those of the image processor."""
    transform = EvaluationTransform(model.image_spec)
    step = torch.tensor(model.image_spec.std).view(3, 1, 1) * 255
    for photo in photos:
        ours = model.normalise(transform(rgb_tensor(photo))[None])[0]
        published = processor(name)(photo, return_tensors="pt")["pixel_values"][0]
        assert ours.shape == published.shape
        assert ((ours - published) * step).abs().max() <= 1.01


@pytest.mark.parametrize("name", DUALS)
def test_images_are_prepared_as_by_transformers(folder: Path, tokenizer_folder: Path, name: str) -> None:
    save_dual(folder, name, tokenizer_folder)
    model = Dual(model=str(folder))

    assert model.image_spec.resize_to == (38 if name == "align" else None)
    check_pixels(model, name, scenes())


@pytest.mark.parametrize("name", ["clip", "siglip", "align"])
def test_real_images_are_prepared_as_by_transformers(folder: Path, tokenizer_folder: Path, shared, name: str) -> None:
    save_dual(folder, name, tokenizer_folder)
    found = sorted((shared / "data" / "coco-sample").rglob("*.jpg"))[:4]
    assert found
    check_pixels(Dual(model=str(folder)), name, [Image.open(path).convert("RGB") for path in found])


def test_default_is_small_and_random() -> None:
    model = Dual()

    image, text = pooled(model)
    assert image.shape == (2, 128)
    assert text.shape == (4, 128)
    assert model.image_spec.size == 64
    assert model.untrained == ("the dual encoder",)
    assert model.pretrained_temperature is None
    assert sum(parameter.numel() for parameter in model.parameters()) < 10e6


@pytest.mark.slow
@pytest.mark.parametrize("name", DUALS)
@torch.no_grad()
def test_other_image_sizes(name: str) -> None:
    model = make(name, image_size=48, image_mean=(0.1, 0.2, 0.3)).eval()

    assert model.image_spec.size == 48
    assert model.image_spec.mean == (0.1, 0.2, 0.3)
    assert (
        model.encode_image(images(model)).tokens.shape[1] > make(name).encode_image(images(make(name))).tokens.shape[1]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "align", "blip"])
def test_frozen_towers(name: str) -> None:
    model = make(name, freeze_vision=True).train()

    frozen = {key for key, p in model.named_parameters() if not p.requires_grad and "pooler" not in key}
    assert frozen == {key for key, _ in model.named_parameters() if key.startswith("model.vis")}
    assert not any(part.training for part in model.model.vision_model.modules())
    assert all(part.training for part in model.text_tower.modules())
    model = make(name, freeze_text=True, gradient_checkpointing=True).train()
    assert all(p.requires_grad == key.startswith("model.vis") for key, p in model.named_parameters())
    torch.stack([side.square().sum() for side in pooled(model)]).sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "siglip", "blip"])
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    gradients = []
    for frugal in (False, True):
        model = make(name, gradient_checkpointing=frugal).train()
        for part in model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        torch.stack([side.square().sum() for side in pooled(model)]).sum().backward()
        gradients.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})

    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing_says_where_it_has_no_effect(caplog: pytest.LogCaptureFixture) -> None:
    make("align", gradient_checkpointing=True)

    assert "gradient_checkpointing is ignored for AlignVisionModel" in caplog.text
    assert "AlignTextModel" not in caplog.text


@pytest.mark.parametrize("name", DUALS)
def test_bfloat16_autocast(name: str) -> None:
    model = make(name).train()

    with torch.autocast("cpu", torch.bfloat16):
        image, text = pooled(model)
    (image.float().square().sum() + text.float().square().sum()).backward()

    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@torch.no_grad()
def test_old_configs_of_clip_pool_at_the_largest_id() -> None:
    """Before 2023 they named 2 as the end token, and transformers still honours that."""
    model = make("clip").eval()
    old = make("clip", config={**DUALS["clip"], "text_config": {**DUALS["clip"]["text_config"], "eos_token_id": 2}})
    old.load_state_dict(model.state_dict())

    for left, right in zip(pooled(model), pooled(old.eval()), strict=True):
        torch.testing.assert_close(left, right)


def test_captions_have_the_published_length() -> None:
    found = {name: make(name).tokenizer.max_length for name in DUALS}

    assert found == {
        "clip": 77, "metaclip_2": 77, "siglip": 64, "altclip": 77, "chinese_clip": 52, "align": 64, "blip": 35,
    }  # fmt: skip
    model = make("siglip", max_words=9)
    assert model.tokenizer(["a dog " * 50]).ids.shape == model.tokenizer(["a"]).ids.shape == (1, 9)
    assert Dual(**model.describe()["init_args"]).tokenizer.max_length == 9


def test_siglip_cleans_captions_as_in_its_training(folder: Path, tokenizer_folder: Path) -> None:
    save_dual(folder, "siglip", tokenizer_folder)
    model = Dual(model=str(folder))
    plain, odd = model.tokenizer(["a dog runs on the mat", "  A DOG,\truns\n (on) the-mat!! "])

    assert "SiglipTokenizer" in (folder / "tokenizer_config.json").read_text()
    assert plain.mask.sum() == 7
    assert plain.ids[6:].tolist() == [1] * 58  # the end token, and padding by it
    assert odd.ids[:5].tolist() == plain.ids[:5].tolist()
    assert 3 not in (model.tokenizer(["!"]).ids.unique() - 1).tolist()


def test_the_ids_in_siglips_published_config_are_no_concern_of_users(caplog: pytest.LogCaptureFixture) -> None:
    from transformers import SiglipTextConfig
    from transformers.utils import logging

    quieten()
    SiglipTextConfig(vocab_size=1000)  # transformers warns once a process for each text
    log = logging.get_logger("transformers.configuration_utils")
    log.warning("x_token_id must be an integer within the vocabulary")
    log.warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]


def test_siglip_2_keeps_punctuation(tokenizer_json: str) -> None:
    from itr.backbones.tokenizers import HFTokenizer
    from itr.backbones.towers.siglip_text import with_cleaning
    from tiny_duals import siglip_tokenizer

    first, second = (
        HFTokenizer(with_cleaning(siglip_tokenizer().to_str(), vocabulary)) for vocabulary in (32_000, 256_000)
    )
    assert first(["A dog!"]).mask.sum() == 3
    assert second(["A dog!"]).mask.sum() == 4
    assert second(["A dog!"]).ids.tolist() == second(["a dog!"]).ids.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "somewhere"}, "set model or config, not both"),
        ({"config": {"model_type": "clipp"}}, "no family for model_type 'clipp'; it takes align, altclip"),
        ({"config": {"model_type": "siglip2"}}, "NaFlex.*fixed resolution, such as google/siglip2-base-patch16-224"),
        ({"config": {**DUALS["clip"], "projection": 3}}, "config: clip has no setting 'projection'; did you mean"),
        (
            {"config": {**DUALS["clip"], "text_config": {"hiden_size": 3}}},
            "config.text_config: clip_text_model has no setting 'hiden_size'; did you mean 'hidden_size'",
        ),
        (
            {"config": {**DUALS["siglip"], "text_config": {**DUALS["siglip"]["text_config"], "projection_size": 8}}},
            "cannot embed a pair in one space",
        ),
        (
            {"config": {**DUALS["clip"], "text_config": {**DUALS["clip"]["text_config"], "vocab_size": 9}}},
            "49408 tokens but the text tower only 9",
        ),
        (
            {"config": {**DUALS["clip"], "text_config": {**DUALS["clip"]["text_config"], "eos_token_id": 5}}},
            "at the end token 5, which the tokenizer doesn't write",
        ),
        ({"max_words": 100}, "max_words=100 must be from 3 to 77"),
        ({"resize_to": 8}, "resize_to=8 must be at least the size of the images, 32"),
        ({"config": None, "model": "no/such"}, "could not load dual encoder 'no/such'.*folder.*config.*network"),
    ],
)
@pytest.mark.usefixtures("offline")
def test_messages(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**arguments)


def test_weights_that_do_not_fit_are_refused(folder: Path, tokenizer_folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_dual(folder, "clip", tokenizer_folder)
    path = folder / "model.safetensors"
    weights = load_file(path)
    for name, value in list(weights.items()):
        if name in ("visual_projection.weight", "logit_scale"):
            save_file({k: v for k, v in weights.items() if k != name}, path, {"format": "pt"})
            with pytest.raises(UserError, match=rf"do not match the dual encoder; missing: {name}"):
                Dual(model=str(folder))
        if name == "text_projection.weight":
            save_file({**weights, name: value[:, :5].contiguous()}, path, {"format": "pt"})
            with pytest.raises(UserError, match=r"of another shape: text_projection.weight"):
                Dual(model=str(folder))
    save_file({f"module.{k}": v for k, v in weights.items()}, path, {"format": "pt"})
    assert torch.equal(Dual(model=str(folder)).model.visual_projection.weight, weights["visual_projection.weight"])


def test_another_model_of_blip_lacks_the_projections(folder: Path, tokenizer_folder: Path) -> None:
    from transformers import AutoConfig, BlipForConditionalGeneration

    save_dual(folder, "blip", tokenizer_folder)
    BlipForConditionalGeneration(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    with pytest.raises(UserError, match=r"do not match the dual encoder; missing:"):
        Dual(model=str(folder))


def test_processors_that_do_not_make_squares_of_one_size_are_refused(folder: Path, tokenizer_folder: Path) -> None:
    from transformers import CLIPImageProcessor, Siglip2ImageProcessor

    save_dual(folder, "clip", tokenizer_folder)
    for made in (
        Siglip2ImageProcessor(),
        CLIPImageProcessor(do_center_crop=False),
        CLIPImageProcessor(size={"shortest_edge": 20}, crop_size={"height": 32, "width": 32}),
    ):
        made.save_pretrained(folder)
        with pytest.raises(UserError, match="does not resize and crop images to squares of one size"):
            Dual(model=str(folder))
    (folder / "preprocessor_config.json").unlink()
    assert Dual(model=str(folder)).image_spec.resize == "shortest"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "siglip", "align"])
def test_a_run_trains_measures_and_embeds(scenes: Path, tmp_path: Path, name: str) -> None:
    config = json.dumps(DUALS[name])
    chosen = ["--model.backbone=Dual", f"--model.backbone.config={config}", "--model.methods+=D2S"]
    chosen += ["--model.methods.num_prompts=3", "--model.methods.depth=1", "--model.large_batch.gradient_cache=4"]
    where = [f"--data.root={scenes}", "--data.batch_size=8", "--data.num_workers=0", "--trainer.accelerator=cpu"]
    where += [f"--trainer.default_root_dir={tmp_path}", "--trainer.enable_progress_bar=false"]
    best = tmp_path / "checkpoints" / "best.ckpt"

    assert main(["fit", *chosen, *where, "--trainer.max_epochs=1"]) == 0
    assert main(["test", *where, f"--ckpt_path={best}"]) == 0
    assert (
        main(["embed", f"--ckpt_path={best}", f"--data={scenes}", f"--out={tmp_path / 'e.npz'}", "--device=cpu"]) == 0
    )
    with np.load(tmp_path / "e.npz") as found:
        assert found["image"].shape[1] == WIDTH.get(name, 24)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "siglip", "chinese_clip"])
@torch.no_grad()
def test_compiled_towers_give_the_same_embeddings(name: str) -> None:
    plain, compiled = make(name).eval(), make(name).eval()
    compiled.lengths = (16, 32)
    for part in compiled.compilable():
        part.compile(backend="eager")

    for left, right in zip(pooled(plain), pooled(compiled), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
