"""A batch that is embedded in parts has the gradients of the whole batch."""

from __future__ import annotations

import sys
from itertools import chain, pairwise

import pytest
import torch
from torch import nn

from exact_parts import BATCH, MODELS, assert_equal, expected, gradients, make_batch, make_module
from itr.training.gradient_cache import replayed
from itr.training.large_batch import LargeBatch
from itr.types import Batch, Encoded, Pairs, Tokens, score_rows
from peak_memory import measure

COUNTS = (1, 3, 1, 2, 4, 1)  # captions of each image


def batch_of_images() -> Batch:
    """12 captions of 6 images, with further fields for both."""
    whole = make_batch(slice(0, BATCH))
    images = slice(0, len(COUNTS))
    index = torch.repeat_interleave(torch.arange(len(COUNTS)), torch.tensor(COUNTS))
    image_extra = {name: value[images] for name, value in whole.image_extra.items()}
    names = {"name": [f"caption {row}" for row in range(BATCH)]}
    return Batch(
        whole.image[images], torch.arange(len(COUNTS)), whole.text, whole.text_id, index, image_extra,
        {**whole.text_extra, **names},
    )  # fmt: skip


@pytest.mark.parametrize("size", range(1, 13))
def test_parts_add_up_to_the_batch_and_no_image_is_in_two_parts(size):
    batch = batch_of_images()
    parts = batch.parts(size)
    for part in parts:
        assert len(part) <= size or len(part.image) == 1
        assert len(part.image) == len(part.image_id) == len(part.image_extra["teacher_image"])
        assert isinstance(part.image_extra["dense"], Tokens)
        assert len(part.image_extra["dense"]) == len(part.image)
        assert torch.equal(part.image_extra["teacher_image"][part.image_index][:, 0], part_teacher(batch, part))
    seen = [int(i) for part in parts for i in part.image_id]
    assert seen == list(range(len(COUNTS)))
    for one, other in pairwise(parts):
        assert len(one) + COUNTS[int(other.image_id[0])] > size, "the next image would have had room"
    assert torch.equal(torch.cat([part.text.ids for part in parts]), batch.text.ids)
    assert torch.equal(torch.cat([part.text_image_id for part in parts]), batch.text_image_id)
    assert list(chain(*(part.text_extra["name"] for part in parts))) == batch.text_extra["name"]


def part_teacher(batch: Batch, part: Batch) -> torch.Tensor:
    teacher = batch.image_extra["teacher_image"]
    assert isinstance(teacher, torch.Tensor)
    return teacher[part.text_image_id][:, 0]


def test_a_batch_whose_captions_are_not_grouped_by_image_is_not_split():
    batch = batch_of_images()
    batch.image_index = batch.image_index.flip(0)
    assert batch.parts(0) == batch.parts(12) == [batch]
    with pytest.raises(AssertionError, match="must be consecutive"):
        batch.parts(5)


@pytest.mark.parametrize("model", ["both", pytest.param("tokens", marks=pytest.mark.slow)])
def test_images_with_several_captions_are_embedded_in_parts(model):
    batch = batch_of_images()
    whole = gradients(make_module(model, LargeBatch()), batch)
    assert_equal(gradients(make_module(model, LargeBatch(gradient_cache=3)), batch), whole, model)


def by_hand(model: str, size: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Gradients when all parts are embedded in order and all activations are kept, and the random state afterwards."""
    module, batch = make_module(model, LargeBatch(), dropout=0.4), make_batch(slice(0, BATCH))
    torch.manual_seed(5)
    parts = batch.parts(size)
    extras = [{k: v for method in module.methods.children() for k, v in method.prepare(p).items()} for p in parts]
    images, texts = zip(*[module._embed_pairs(part) for part in parts], strict=True)
    image, text = Encoded.concatenate(list(images)), Encoded.concatenate(list(texts))
    scores = score_rows(module.similarity, image, text, batch.text_image_id, slice(0, BATCH))
    extra = {name: torch.cat([found[name] for found in extras]) for name in extras[0]}
    terms = module._share(Pairs(image, text, batch.text_image_id, scores, extra))
    torch.stack(list(terms.values())).sum().backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}, torch.get_rng_state()


OFTEN = ("both",)


@pytest.mark.parametrize("model", [m if m in OFTEN else pytest.param(m, marks=pytest.mark.slow) for m in MODELS])
def test_dropout_is_replayed_bit_for_bit(model):
    wanted, state = by_hand(model, 5)
    module = make_module(model, LargeBatch(gradient_cache=5), dropout=0.4)
    torch.manual_seed(5)
    torch.stack(list(module.loss_terms(make_batch(slice(0, BATCH)), 0.0).values())).sum().backward()
    assert torch.equal(torch.get_rng_state(), state)
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())
    still = expected(model)
    assert any(not torch.allclose(value, still[f"module.{name}"]) for name, value in wanted.items())


@pytest.mark.slow
def test_automatic_mixed_precision_is_replayed():
    found = []
    for size in (0, 5):
        module = make_module("both", LargeBatch(gradient_cache=size)).float()
        with torch.autocast("cpu", torch.bfloat16):
            loss = torch.stack(list(module.loss_terms(make_batch(slice(0, BATCH)), 0.0).values())).sum()
        loss.backward()
        found.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=0.05, atol=0.05 * value.abs().max().item())


@pytest.mark.parametrize("cached", [False, True])
def test_running_statistics_count_each_part_once(cached):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 2)).double()
    rows = torch.randn(10, 3, dtype=torch.float64)
    plain = nn.Sequential(*[part for part in layers])
    state = {name: value.clone() for name, value in layers.state_dict().items()}
    found = []
    for again in (False, cached):
        layers.load_state_dict(state)
        plain.zero_grad()
        torch.manual_seed(1)
        parts = [
            replayed(lambda part=part: plain(part), plain, rows.device) if again else plain(part)
            for part in rows.split(4)
        ]
        between = {name: value.clone() for name, value in plain.state_dict().items()}
        torch.cat(parts).square().sum().backward()
        assert all(torch.equal(value, between[name]) for name, value in plain.state_dict().items())
        found.append([*plain.state_dict().values(), *(p.grad.clone() for p in plain.parameters())])
    assert layers[1].num_batches_tracked == 3
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_new_tensors_have_the_same_dtype_in_both_passes():
    """As with `64-true`, which sets the default dtype only during the forward pass."""
    torch.manual_seed(0)
    layer, rows = nn.Linear(3, 2).double(), torch.randn(4, 3, dtype=torch.float64)

    def forward() -> torch.Tensor:
        return layer(rows).square() * torch.linspace(0.1, 0.7, 2)

    found = []
    for again in (False, True):
        layer.zero_grad()
        torch.set_default_dtype(torch.float64)
        try:
            result = replayed(forward, layer, rows.device) if again else forward()
        finally:
            torch.set_default_dtype(torch.float32)
        result.sum().backward()
        assert torch.get_default_dtype() == torch.float32
        found.append(layer.weight.grad.clone())
    assert torch.equal(*found)


def test_features_that_no_loss_needs_are_freed():
    module, batch = make_module("both", LargeBatch()), make_batch(slice(0, BATCH))
    image, text = module._embed_pairs(batch)
    assert [side.tokens.untyped_storage().nbytes() for side in (image, text)] == [0, 0]
    assert module.encode_image(batch.image).tokens.shape[1] > 1
    assert make_module("tokens", LargeBatch())._embed_pairs(batch)[0].tokens.shape[1] > 1


PREPARE = """
from itr.backbones import VSE
from itr.module import RetrievalModule
from itr.objectives import InfoNCE
from itr.training.large_batch import LargeBatch
from itr.types import Batch, Tokens

size = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
towers = VSE(vision_config={"model_type": "vit", "image_size": 64, "patch_size": 8, **size},
             text_config={"model_type": "bert", "pad_token_id": None, **size}, dim=128)
module = RetrievalModule(towers, InfoNCE(), large_batch=LargeBatch(gradient_cache=setting))
ids = torch.randint(5, 99, (256, 24))
batch = Batch(torch.randint(256, (256, 3, 64, 64), dtype=torch.uint8), torch.arange(256), Tokens(ids, ids > 0),
              torch.arange(256), torch.arange(256))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_peak_memory_is_that_of_one_part():
    step = "module.loss_terms(batch, 0.0)['objective'].backward()"
    (plain, plain_seconds), (parts, parts_seconds) = (measure(PREPARE, step, size) for size in (0, 16))
    print(f"{plain:.0f} MiB and {plain_seconds:.1f} s; in parts of 16: {parts:.0f} MiB and {parts_seconds:.1f} s")
    assert plain > 300, "too small to measure"
    assert parts < plain / 2
