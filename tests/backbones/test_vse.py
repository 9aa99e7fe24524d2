"""VSE: towers of several families, padding, freezing, descriptions, messages."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from itr.backbones import VSE
from itr.errors import UserError
from itr.types import Encoded, Tokens

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
VIT: dict[str, Any] = {"model_type": "vit", "image_size": 32, "patch_size": 8, **SIZES}
VISION: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "swin": {
        "model_type": "swin", "image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1],
        "num_heads": [2, 2], "window_size": 4,
    },
    "convnext": {
        "model_type": "convnext", "image_size": 32, "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2,
    },
    "siglip": {**VIT, "model_type": "siglip_vision_model"},
}  # fmt: skip
BERT: dict[str, Any] = {"model_type": "bert", "max_position_embeddings": 24, **SIZES}
CAPTIONS = ["a dog", "the big red dog runs on the mat", "", "a ball"]


def make(tokenizer_json: str, **arguments: Any) -> VSE:
    torch.manual_seed(0)
    settings = {"vision_config": VIT, "text_config": BERT, "tokenizer_json": tokenizer_json, "dim": 16, **arguments}
    return VSE(**settings)


def images(num: int, size: int) -> Tensor:
    return torch.randint(0, 256, (num, 3, size, size), dtype=torch.uint8)


def embed(model: VSE, seed: int = 0) -> tuple[Encoded, Encoded]:
    torch.manual_seed(seed)
    return model.encode_image(images(4, model.image_spec.size)), model.encode_text(model.tokenizer(CAPTIONS))


def assert_equal_embeddings(one: VSE, other: VSE) -> None:
    """Up to rounding: weights of a file that is mapped into memory are aligned otherwise, so products may differ."""
    with torch.no_grad():
        for left, right in zip(embed(one.eval()), embed(other.eval()), strict=True):
            torch.testing.assert_close(left.pooled, right.pooled, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(left.tokens, right.tokens, rtol=1e-4, atol=1e-5)


def test_default_is_small_and_random() -> None:
    model = VSE()

    image, text = embed(model)
    assert image.pooled.shape == text.pooled.shape == (4, 512)
    assert image.tokens.shape == (4, 65, 512)
    assert model.similarity(image, text).shape == (4, 4)
    assert model.untrained == ("the vision tower", "the text tower", "the projections")
    assert sum(parameter.numel() for parameter in model.parameters()) < 10e6


@pytest.mark.parametrize("family", VISION)
def test_every_trained_parameter_gets_a_gradient(tokenizer_json: str, family: str) -> None:
    model = make(tokenizer_json, vision_config=VISION[family], text_mlp=True, text_norm=True).train()

    image, text = embed(model)
    (image.pooled.square().sum() + text.pooled.square().sum()).backward()

    assert image.mask.shape == image.tokens.shape[:2]
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpo", "mean", "max", "cls"])
def test_an_embedding_does_not_depend_on_its_batch(tokenizer_json: str, kind: Any) -> None:
    model = make(tokenizer_json, text_pooling=kind, image_pooling=kind, text_mlp=True, text_norm=True).eval()
    together = model.encode_text(model.tokenizer(CAPTIONS)).pooled

    for row, caption in enumerate(CAPTIONS):
        alone = model.tokenizer([caption])
        rubbish = torch.randint(0, 17, (1, 5))
        ids = torch.cat([alone.ids, rubbish], dim=1)
        padded = Tokens(ids=ids, mask=torch.cat([alone.mask, torch.zeros_like(rubbish, dtype=torch.bool)], dim=1))
        for tokens in (alone, padded):
            torch.testing.assert_close(model.encode_text(tokens).pooled[0], together[row], rtol=1e-4, atol=1e-5)


def test_word_statistics_ignore_padding(tokenizer_json: str) -> None:
    model = make(tokenizer_json, text_mlp=True, word_mask=0.0).train()
    assert model.text_mlp is not None
    words, mask = torch.randn(3, 6, 32), torch.arange(6) < torch.tensor([[6], [2], [4]])
    words = words.masked_fill(~mask.unsqueeze(-1), 1e3)

    hidden = model.text_mlp.hidden(words)
    reference = torch.nn.BatchNorm1d(hidden.shape[-1])
    expected = reference(hidden[mask])
    actual = model.text_mlp.norm(hidden, mask)[mask]

    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.text_mlp.norm.running_mean, reference.running_mean)
    torch.testing.assert_close(model.text_mlp.norm.running_var, reference.running_var)


def test_augmentation_only_in_training(tokenizer_json: str) -> None:
    model = make(tokenizer_json, visual_token_drop=1.0, word_mask=1.0)

    image, text = embed(model.train())
    assert not image.mask.all()
    assert text.mask.sum() < model.tokenizer(CAPTIONS).mask.sum()
    image, text = embed(model.eval())
    assert image.mask.all()
    assert torch.equal(text.mask, model.tokenizer(CAPTIONS).mask)


def test_word_dropout_comes_before_the_projection(tokenizer_json: str) -> None:
    model = make(tokenizer_json, word_mask=0.0, word_dropout=1.0)

    assert embed(model.train())[1].tokens.count_nonzero() == 0  # zeros through the projection, whose bias starts at 0
    assert embed(model.eval())[1].tokens.count_nonzero() > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", VISION)
def test_other_image_sizes(tokenizer_json: str, family: str) -> None:
    model = make(tokenizer_json, vision_config=VISION[family], image_size=48).eval()

    assert model.image_spec.size == 48
    assert (
        embed(model)[0].tokens.shape[1]
        > make(tokenizer_json, vision_config=VISION[family]).encode_image(images(1, 32)).tokens.shape[1]
    )


def test_frozen_towers(tokenizer_json: str) -> None:
    model = make(tokenizer_json, freeze_vision=True, freeze_text=True, gradient_checkpointing=True).train()

    assert model.training
    assert model.image_pool.training
    assert not any(module.training for tower in (model.vision_tower, model.text_tower) for module in tower.modules())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != model.is_tower(name)
    embed(model)[0].pooled.sum().backward()


def test_gradient_checkpointing_changes_nothing(tokenizer_json: str) -> None:
    plain, frugal = make(tokenizer_json), make(tokenizer_json, gradient_checkpointing=True)
    frugal.load_state_dict(plain.state_dict())
    assert frugal.vision_tower.is_activation_checkpointing

    gradients = []
    for model in (plain, frugal):
        model.train()
        torch.manual_seed(1)
        torch.stack([side.pooled.square().sum() for side in embed(model)]).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})

    assert gradients[0].keys() == gradients[1].keys()
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)


def test_bfloat16_autocast(tokenizer_json: str) -> None:
    model = make(tokenizer_json, text_mlp=True, text_norm=True).train()

    with torch.autocast("cpu", torch.bfloat16):
        image, text = embed(model)
        loss = model.similarity(image, text).float().sum()
    loss.backward()

    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def save_towers(folder: Path) -> None:
    """A vision folder with its own normalization and a text folder, made by save_pretrained."""
    from transformers import AutoConfig, AutoModel, ViTImageProcessor

    AutoModel.from_config(AutoConfig.for_model(**VIT)).save_pretrained(folder / "vit")
    ViTImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3, size={"height": 32, "width": 32}).save_pretrained(
        folder / "vit"
    )
    AutoModel.from_config(AutoConfig.for_model(**BERT, vocab_size=17)).save_pretrained(folder / "bert")


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="EfficientNet divides by the deviation twice"),
        pytest.param({"include_top": False, "rescale_offset": True, "rescale_factor": 1 / 127.5}, id="from -1 to 1"),
        pytest.param({"include_top": False, "do_normalize": False}, id="from 0 to 1"),
    ],
)
def test_a_vision_tower_gets_the_pixels_that_its_own_processor_makes(tmp_path: Path, settings: dict[str, Any]) -> None:
    from transformers import AutoConfig, AutoModel, EfficientNetImageProcessor

    AutoModel.from_config(AutoConfig.for_model(**VIT)).save_pretrained(tmp_path)
    processor = EfficientNetImageProcessor(size={"height": 32, "width": 32}, resample=3, **settings)
    processor.save_pretrained(tmp_path)
    model = VSE(vision=str(tmp_path), text_config=BERT, dim=8)
    image = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8)
    expected = processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(model.normalise(image), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_description_needs_no_other_files(tmp_path: Path, tokenizer_folder: Path) -> None:
    save_towers(tmp_path)
    model = VSE(
        vision=str(tmp_path / "vit"),
        text=str(tmp_path / "bert"),
        tokenizer=str(tokenizer_folder),
        dim=16,
        image_size=48,
    )
    assert (model.image_spec.mean, model.image_spec.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert (model.image_spec.resize, model.image_spec.interpolation) == ("squash", "bilinear")
    assert model.tokenizer.max_length == 20

    stream = io.BytesIO()
    torch.save({"backbone": model.describe(), "weights": model.state_dict()}, stream)
    shutil.rmtree(tmp_path)
    stream.seek(0)
    saved = torch.load(stream, weights_only=True)
    again = VSE(**saved["backbone"]["init_args"])
    again.load_state_dict(saved["weights"], strict=True)

    assert str(tmp_path) not in str(saved["backbone"])
    assert again.image_spec == model.image_spec
    assert again.describe() == model.describe()
    assert_equal_embeddings(model, again)


def test_a_description_survives_jsonargparse(tokenizer_json: str) -> None:
    from jsonargparse import ArgumentParser

    from itr.backbones import Backbone

    model = make(tokenizer_json, text_mlp=True, image_mean=(0.1, 0.2, 0.3))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Backbone, "backbone")
    parsed = parser.parse_object({"backbone": model.describe()})
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # renamed within version 4
    again = instantiate(parsed).backbone
    again.load_state_dict(model.state_dict())

    assert again.describe() == model.describe()
    assert_equal_embeddings(model, again)


def test_pretrained_weights_are_used_in_float32(tmp_path: Path, tokenizer_json: str) -> None:
    from transformers import AutoConfig, AutoModel

    saved = AutoModel.from_config(AutoConfig.for_model(**VIT)).half()
    saved.save_pretrained(tmp_path)
    model = make(tokenizer_json, vision_config=None, vision=str(tmp_path))

    weights = dict(saved.named_parameters())
    for name, parameter in model.vision_tower.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, weights[name].float())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vision": "somewhere"}, "set vision or vision_config, not both"),
        ({"text": "somewhere"}, "set text or text_config, not both"),
        ({"vision_config": {**VIT, "hidden_sice": 3}}, "vit has no setting 'hidden_sice'; did you mean 'hidden_size'"),
        ({"vision_config": {"model_type": "vitt"}}, "transformers has no model_type 'vitt'; did you mean 'vit'"),
        ({"vision_config": {**VIT, "image_size": 4}}, "vit tower cannot process|could not build this tower"),
        ({"text_config": {"model_type": "t5"}}, "'t5' is not a plain encoder"),
        ({"text_config": {**BERT, "vocab_size": 9}}, "17 tokens but the text tower only 9"),
        ({"max_words": 100}, "max_words=100 must be from 3 to 24"),
        ({"word_mask": 1.5}, "word_mask=1.5 must be between 0 and 1"),
        (
            {"vision_config": None, "vision": "no/such"},
            "could not load vision tower 'no/such'.*folder.*network.*vision_config",
        ),
        ({"text_config": None, "text": "no/such"}, "could not load text tower 'no/such'.*folder.*network.*text_config"),
    ],
)
@pytest.mark.usefixtures("offline")
def test_messages(tokenizer_json: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(tokenizer_json, **arguments)


def test_max_words(tokenizer_json: str) -> None:
    model = make(tokenizer_json, max_words=5)

    assert model.tokenizer(["a dog " * 50]).ids.shape == (1, 5)
    assert VSE(**model.describe()["init_args"]).tokenizer.max_length == 5


def two_towers(name: str) -> dict[str, Any]:
    """The text tower of a dual encoder, by its own pooling."""
    words = {"model_type": f"{name}_text_model", "vocab_size": 49408, "eos_token_id": 49407, **SIZES}
    return {"vision_config": VIT, "text_config": words, "text_pooling": "own", "dim": 32, "word_mask": 0.0}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["siglip", "siglip2", "metaclip_2", "clip"])
@torch.no_grad()
def test_text_towers_of_dual_encoders_pool_as_pretrained(name: str) -> None:
    torch.manual_seed(0)
    model = VSE(**two_towers(name)).eval()
    tokens = model.tokenizer(CAPTIONS)
    mask = {} if name.startswith("siglip") else {"attention_mask": tokens.mask.long()}

    pooled = model.text_tower(input_ids=tokens.ids, **mask).pooler_output
    torch.testing.assert_close(model.encode_text(tokens).pooled, model.text_projection(pooled), rtol=1e-4, atol=1e-5)
    assert tokens.ids.shape[1] == (64 if name.startswith("siglip") else 10)
    alone = model.encode_text(model.tokenizer(CAPTIONS[:1]))
    torch.testing.assert_close(alone.pooled[0], model.encode_text(tokens).pooled[0], rtol=1e-4, atol=1e-5)
    assert VSE(**model.describe()["init_args"]).describe() == model.describe()
    end = tokens.mask.sum(1) - 1
    if not mask:
        head = getattr(model.text_tower, "text_model", model.text_tower).head  # transformers once nested it
        own = head(model.text_tower(input_ids=tokens.ids).last_hidden_state[:, -1])
        torch.testing.assert_close(pooled, own)
    else:
        words = model.text_projection(
            model.text_tower(input_ids=tokens.ids, **mask).last_hidden_state[torch.arange(4), end]
        )
        torch.testing.assert_close(words, model.encode_text(tokens).pooled, rtol=1e-4, atol=1e-5)


def test_own_pooling_is_trained_or_refused(tokenizer_json: str) -> None:
    model = VSE(**{**two_towers("siglip"), "vision_config": VISION["siglip"]}, image_pooling="own").train()
    torch.stack([side.pooled.square().sum() for side in embed(model)]).sum().backward()

    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not [key for key, p in model.named_parameters() if not p.requires_grad]
    with pytest.raises(UserError, match=r"pooling `own`: the tower does not pool; choose gpo"):
        make(tokenizer_json, text_pooling="own")


@pytest.mark.parametrize("name", ["siglip", "metaclip_2"])
def test_a_text_tower_out_of_a_dual_encoder(tmp_path: Path, tokenizer_folder: Path, name: str) -> None:
    from tiny_duals import save_dual

    reference = save_dual(tmp_path / "dual", name, tokenizer_folder)
    model = VSE(vision_config=VIT, text=str(tmp_path / "dual"), text_pooling="own", dim=16)

    tower = reference.text_model.state_dict()
    found = {key.removeprefix("text_model."): value for key, value in model.text_tower.state_dict().items()}
    assert tower.keys() == found.keys()
    assert all(torch.equal(value, tower[key]) for key, value in found.items())
    assert model.tokenizer(["A dog."]).ids[0].tolist() == (
        [3, 4, 1, *[1] * 61] if name == "siglip" else model.tokenizer(["a dog."]).ids[0].tolist()
    )
    assert VSE(**model.describe()["init_args"]).describe() == model.describe()
