"""D2S: the enriched text embedding, the distillation, and the combination with backbones and other methods."""

from __future__ import annotations

import pytest
import torch
from d2s_parts import SMALL, batch, build, clip, vse
from torch import nn

from itr.errors import UserError
from itr.methods import CUSA, D2S, Method, MethodModule
from itr.module import RetrievalModule
from itr.objectives import InfoNCE
from itr.types import Encoded, Tokens

SWITCHES = [
    {}, {"placement": "prefix"}, {"placement": "postfix"}, {"positions": False}, {"cross_attention": True},
    {"pooling": "gpo"}, {"residual": False}, {"residual": False, "cross_attention": True, "pooling": "gpo"},
    {"distillation": "l1"}, {"distillation": "l2"}, {"weight": 0.0}, {"attend_padding": True},
    {"normalise_in_evaluation": True}, {"gain": 0.0},
]  # fmt: skip


@pytest.mark.parametrize("backbone", [vse, clip])
def test_an_embedding_does_not_depend_on_its_batch(backbone):
    module = build(backbone()).eval()
    alone = module.encode_text(["a red dot"]).pooled
    together = module.encode_text(["a red dot", "a much longer caption with a good many words in it"]).pooled[:1]
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)


def test_the_prompt_output_is_added():
    module = build(vse(word_mask=0.0)).eval()
    method = module.methods["d2s"]
    tokens = module.backbone.tokenizer(["a red dot"])
    plain = module.backbone.encode_text(tokens)
    prompt = method.decoder(plain.tokens, plain.mask)
    torch.testing.assert_close(module.encode_text(["a red dot"]).pooled, plain.pooled + prompt)
    method.normalise_in_evaluation = True
    expected = plain.pooled + nn.functional.normalize(prompt, dim=-1)
    torch.testing.assert_close(module.encode_text(["a red dot"]).pooled, expected)
    torch.testing.assert_close(method.train().embed_text(plain).pooled, plain.pooled + prompt)
    method.residual = False
    torch.testing.assert_close(method.embed_text(plain).pooled, prompt)


def test_with_zero_gain_training_starts_at_the_first_stages_embedding():
    module = build(vse(word_mask=0.0, visual_token_drop=0.0), gain=0.0).double().eval()
    texts = ["a red circle", "two"]
    plain = module.backbone.encode_text(module.backbone.tokenizer(texts)).pooled.detach()
    assert torch.equal(module.encode_text(texts).pooled, plain)
    optimizer = torch.optim.SGD(module.methods.parameters(), lr=0.1)
    for _ in range(2):  # the decoder gets gradients only after the first step has changed the gain
        optimizer.zero_grad()
        torch.stack(list(module.loss_terms(batch(module), 0.0).values())).sum().backward()
        optimizer.step()
    assert module.methods["d2s"].decoder.prompts.grad.abs().max() > 0
    assert not torch.allclose(module.encode_text(texts).pooled, plain)


@pytest.mark.parametrize("backbone", [vse, clip])
@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_every_trainable_parameter_gets_a_gradient(switch, backbone):
    module = build(backbone(), **switch).train()
    torch.stack(list(module.loss_terms(batch(module), 0.0).values())).sum().backward()
    without = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert not any(p.grad is not None for n, p in module.named_parameters() if ".teacher." in n)


def test_the_loss_is_the_distance_of_the_final_text_embedding_to_the_dense_one():
    module = build(vse(word_mask=0.0, visual_token_drop=0.0)).eval()
    own = batch(module)
    own.image_index = torch.tensor([2, 0, 1, 3])
    text = module.encode_tokens(own.text).pooled
    dense = module.methods["d2s"].teacher.encoder.encode_text(own.image_extra["dense"]).pooled[own.image_index]
    expected = 1 - nn.functional.cosine_similarity(text, dense).mean()
    found = module.loss_terms(own, 0.0)["d2s/distillation"]
    torch.testing.assert_close(found, expected)
    parameters = list(module.methods["d2s"].decoder.parameters())
    for ours, reference in zip(*(torch.autograd.grad(value, parameters) for value in (found, expected)), strict=True):
        torch.testing.assert_close(ours, reference)
    without = build(vse(word_mask=0.0, visual_token_drop=0.0), cached=True).eval()
    without.load_state_dict(module.state_dict(), strict=False)
    cached = batch(without, dense=False)
    cached.image_index = own.image_index
    with pytest.raises(UserError, match="itr features"):
        without.loss_terms(cached, 0.0)
    cached.image_extra["teacher_dense"] = module.methods["d2s"].teacher(own.image_extra["dense"])
    torch.testing.assert_close(without.loss_terms(cached, 0.0)["d2s/distillation"], expected)
    assert not [name for name in without.state_dict() if ".teacher." in name]


def test_without_weight_no_dense_captions_are_needed():
    method = D2S(**SMALL, weight=0.0)
    assert method.needs == ()
    assert D2S(**SMALL).needs == ("dense",)
    assert D2S(**SMALL, cached=True).needs == ("teacher_dense",)
    assert D2S(**SMALL, cached=True, weight=0.0).needs == ()
    module = RetrievalModule(vse(), InfoNCE(), [method])
    assert not [name for name in module.state_dict() if "teacher" in name]
    assert set(module.loss_terms(batch(module, dense=False), 0.0)) == {"objective"}


def test_missing_dense_captions_are_refused():
    module = build()
    with pytest.raises(UserError, match="itr densify"):
        module.loss_terms(batch(module, dense=False), 0.0)


def test_a_dense_caption_beyond_the_context_keeps_its_end():
    module = build(clip())
    tokens = batch(module).image_extra["dense"]
    assert isinstance(tokens, Tokens)
    assert tokens.ids.shape[1] == 24
    assert tokens.ids[0, -1] == module.backbone.tokenizer.end_id
    assert module.methods["d2s"].prepare(batch(module))["d2s_dense"].shape == (4, 8)


class ScaleModule(MethodModule):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), 2.0))

    def embed_text(self, encoded: Encoded) -> Encoded:
        return Encoded(encoded.pooled * self.scale, encoded.tokens, encoded.mask, encoded.pooled)


class Scale(Method):
    name = "scale"

    def build(self, backbone) -> ScaleModule:
        return ScaleModule(backbone.dim)


@pytest.mark.parametrize("d2s_first", [True, False])
def test_composes_with_another_method(d2s_first):
    methods = [D2S(**SMALL), Scale()]
    module = RetrievalModule(vse(), InfoNCE(), methods if d2s_first else methods[::-1])
    terms = module.loss_terms(batch(module), 0.0)
    assert set(terms) == {"objective", "d2s/distillation"}
    torch.stack(list(terms.values())).sum().backward()
    assert module.methods["scale"].scale.grad is not None
    assert module.eval().encode_text(["two"]).unimodal is not None


@pytest.mark.parametrize("d2s_first", [True, False])
@pytest.mark.parametrize("backbone", [vse, clip])
def test_composes_with_cusa(backbone, d2s_first):
    methods = [D2S(**SMALL), CUSA()]
    module = RetrievalModule(backbone(), InfoNCE(), methods if d2s_first else methods[::-1])
    own = batch(module)
    own.image_extra["teacher_image"], own.text_extra["teacher_text"] = torch.randn(4, 5), torch.randn(4, 3)
    terms = module.loss_terms(own, 0.0)
    assert set(terms) == {"objective", "d2s/distillation", "cusa/csa", "cusa/usa"}
    torch.stack(list(terms.values())).sum().backward()
    assert not [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("cross_attention", [False, True])
def test_half_precision(cross_attention):
    module = build(vse(word_mask=0.0, visual_token_drop=0.0), cross_attention=cross_attention).eval()
    exact = module.loss_terms(batch(module), 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        half = module.loss_terms(batch(module), 0.0)
    for name, value in exact.items():
        torch.testing.assert_close(half[name].float(), value, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    "knobs",
    [
        {"num_prompts": 0}, {"depth": 0}, {"weight": -1.0}, {"heads": 3}, {"gain": 0.0, "residual": False},
        {"gain": 0.5, "cross_attention": True},
    ],
)  # fmt: skip
def test_invalid_settings_are_refused(knobs):
    with pytest.raises(UserError, match=next(iter(knobs))):
        build(**knobs)
