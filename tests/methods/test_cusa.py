"""CUSA: its loss terms, its settings, and its use in a module."""

from __future__ import annotations

import dataclasses
import functools
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from itr.backbones import VSE
from itr.errors import UserError
from itr.interop.convert import save_converted
from itr.losses import soft_label_alignment, teacher_similarity
from itr.methods import CUSA
from itr.methods.cusa_temperatures import Temperatures
from itr.module import RetrievalModule
from itr.objectives import InfoNCE
from itr.runs.command import TrainingCLI
from itr.training.large_batch import LargeBatch
from itr.types import Batch, Encoded, Pairs, Scores
from tiny import TINY_VSE, copy_of

SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VISION = {"model_type": "vit", "image_size": 32, "patch_size": 16, **SIZE}
TEXT = {"model_type": "bert", "pad_token_id": None, **SIZE}
FIXED = Temperatures(learnable=False)
SEPARATE = Temperatures(sharing="separate")


@functools.cache
def towers() -> VSE:
    torch.manual_seed(0)
    return VSE(vision_config=VISION, text_config=TEXT, dim=16, image_pooling="mean", text_pooling="mean")


def module(method: CUSA) -> RetrievalModule:
    backbone = copy_of(towers())
    torch.manual_seed(0)
    return RetrievalModule(backbone, InfoNCE(), [method])


def batch(model: RetrievalModule) -> Batch:
    """Six captions of five images, with teachers in half precision."""
    generator = torch.Generator().manual_seed(1)
    return Batch(
        image=torch.randint(256, (5, 3, 32, 32), generator=generator).byte(),
        image_id=torch.arange(5),
        text=model.backbone.tokenizer(["a dog", "two red cats", "sky", "the old man", "a boat", "one more"]),
        text_id=torch.arange(6),
        image_index=torch.tensor([0, 1, 2, 3, 4, 4]),
        image_extra={"teacher_image": torch.randn(5, 7, generator=generator).half()},
        text_extra={"teacher_text": torch.randn(6, 9, generator=generator).half()},
    )


def pooled_only(pooled: torch.Tensor, unimodal: torch.Tensor | None = None) -> Encoded:
    empty = pooled.new_zeros(len(pooled), 0, pooled.shape[1])
    return Encoded(pooled, empty, empty[..., 0].bool(), unimodal)


def pairs(size: int = 6, seed: int = 0) -> Pairs:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    return Pairs(
        image=pooled_only(draw(size, 8), draw(size, 8)),
        text=pooled_only(draw(size, 8), draw(size, 8)),
        image_id=torch.arange(size),
        scores=Scores.whole(draw(size, size).tanh(), torch.eye(size, dtype=torch.bool)),
        extra={"teacher_image": draw(size, 5), "teacher_text": draw(size, 3)},
    )


def build(**settings):
    return CUSA(**settings).build(SimpleNamespace(dim=8)).double()


SWITCHES = [
    {"alpha": alpha, "beta": beta, "cross_head": cross, "uni_head": uni, "cross_temperature": temperatures}
    for alpha, beta, cross, uni, temperatures in product(
        (0.0, 0.1), (0.0, 0.5), (False, True), (False, True), (Temperatures(), FIXED, SEPARATE)
    )
    if alpha or temperatures is not SEPARATE
]


@pytest.mark.parametrize("settings", SWITCHES, ids=lambda s: "-".join(str(v)[:40] for v in s.values()))
def test_every_parameter_gets_a_gradient(settings):
    model = module(CUSA(**settings))
    terms = model.loss_terms(batch(model), progress=0.0)
    assert set(terms) == {"objective", *(f"cusa/{t}" for t, on in (("csa", "alpha"), ("usa", "beta")) if settings[on])}
    sum(terms.values()).backward()
    # A term of 0 or a zero gradient would also leave a parameter untrained.
    still = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    still += [n for n, p in model.methods.named_parameters() if p.requires_grad and not p.grad.any()]
    assert not still


def test_every_kind_of_temperature_gets_a_gradient():
    for sharing, uni_sharing in product(("shared", "separate"), ("shared", "separate", "cross")):
        method = CUSA(
            cross_temperature=Temperatures(sharing=sharing),
            uni_temperature=Temperatures(sharing=uni_sharing),
            cross_soft_temperature=Temperatures(sharing=sharing),
            uni_soft_temperature=Temperatures(sharing=uni_sharing),
        )
        built = method.build(SimpleNamespace(dim=8)).double()
        sum(built.losses(pairs()).values()).backward()
        count = {"shared": 1, "separate": 2, "cross": 0}
        assert len(built.temperatures) == 2 * (count[sharing] + count[uni_sharing])
        assert all(p.grad is not None and p.grad != 0 for p in built.temperatures.parameters())


def test_the_defaults_are_the_authors_settings():
    built = build()
    taus = {name: (t.value.item(), t.bounds, t.value.requires_grad) for name, t in built.temperatures.items()}
    assert taus == {
        "cross": (pytest.approx(0.45), (0.1, 0.99), True),
        "cross_soft": (1.0, (0.1, 1.0), False),
        "uni_image": (pytest.approx(0.45), (0.1, 1.0), True),
        "uni_text": (pytest.approx(0.45), (0.1, 1.0), True),
    }
    assert list(built.heads) == ["cross_image", "cross_text", "uni_image", "uni_text"]
    weight = build().heads["uni_text"][1].weight
    assert weight.shape == (8, 8)
    assert 0.01 < weight.std() < 0.03


def test_disabled_terms_build_nothing():
    assert [name for name, _ in build(alpha=0, beta=0, cross_head=False).named_parameters()] == []
    assert list(build(beta=0).heads) == ["cross_image", "cross_text"]
    assert list(build(beta=0).temperatures) == ["cross", "cross_soft"]
    assert list(build(alpha=0).temperatures) == ["uni_image", "uni_text", "uni_soft"]
    assert list(build(cross_head=False, uni_head=False).heads) == []
    assert CUSA(alpha=0, beta=0).needs == ()
    assert build(alpha=0, beta=0).losses(pairs()) == {}
    assert CUSA().weights == {"csa": 0.1, "usa": 0.5}
    assert CUSA(alpha=0).weights == {"usa": 0.5}


def test_the_terms_equal_their_alignments():
    data, built = pairs(), build(targets="add", loss="cross_entropy", uni_loss="kl")
    terms = built.losses(data)
    image, text = (teacher_similarity(data.extra[f"teacher_{side}"], data.rows) for side in ("image", "text"))
    goal = (image + text) / 2
    tau = built.temperatures["cross"].value
    both = data.scores.image_to_text, data.scores.text_to_image
    expected = sum(soft_label_alignment(s, goal, tau, 1.0, "cross_entropy") for s in both)
    torch.testing.assert_close(terms["csa"], expected / 2)
    own = [teacher_similarity(side.unimodal, data.rows) for side in (data.image, data.text)]
    expected = sum(soft_label_alignment(s, t, tau) for s, t in zip(own, (image, text), strict=True))
    torch.testing.assert_close(terms["usa"], expected / 2)


GOALS = {
    "each": lambda image, text: (image, text),
    "add": lambda image, text: ((image + text) / 2,) * 2,
    "dot": lambda image, text: ((image.clamp(min=0) * text.clamp(min=0)).sqrt(),) * 2,
}


@pytest.mark.parametrize("targets", GOALS)
def test_the_terms_and_their_gradients_equal_the_papers_equations(targets):
    data, built = pairs(), build(targets=targets, cross_temperature=SEPARATE, uni_soft_temperature=SEPARATE)
    tau = {name: temperature.value for name, temperature in built.temperatures.items()}
    with torch.no_grad():
        for number, value in enumerate(tau.values()):
            value.fill_(0.3 + 0.1 * number)  # a different value for each role
    given = [data.scores.image_to_text, data.image.unimodal, data.text.unimodal, *tau.values()]

    def cosines(rows: torch.Tensor) -> torch.Tensor:
        unit = rows / rows.square().sum(dim=1, keepdim=True).sqrt()
        return unit @ unit.T

    def divergence(scores: torch.Tensor, goal: torch.Tensor, role: str, soft: str) -> torch.Tensor:
        expected, found = (goal / tau[soft]).softmax(dim=1), (scores / tau[role]).softmax(dim=1)
        return (expected * (expected / found).log()).sum() / len(scores)

    def formulas() -> dict[str, torch.Tensor]:
        teachers = [cosines(data.extra[f"teacher_{side}"]) for side in ("image", "text")]
        goals, scores = GOALS[targets](*teachers), (data.scores.image_to_text, data.scores.image_to_text.T)
        own = [cosines(side.unimodal) for side in (data.image, data.text)]
        sides = list(enumerate(("image", "text")))
        csa = [divergence(scores[n], goals[n], f"cross_{side}", "cross_soft") for n, side in sides]
        usa = [divergence(own[n], teachers[n], f"uni_{side}", f"uni_soft_{side}") for n, side in sides]
        return {"csa": sum(csa) / 2, "usa": sum(usa) / 2}

    found = []
    for terms in (built.losses, lambda _: formulas()):
        for value in given:
            value.grad = None
            value.requires_grad_()
        values = terms(data)
        (values["csa"] + 2 * values["usa"]).backward()
        found.append([values["csa"], values["usa"], *(value.grad for value in given)])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_embeddings_equal_to_the_teachers_have_zero_loss():
    data = pairs()
    data.image.unimodal, data.text.unimodal = data.extra["teacher_image"], data.extra["teacher_text"]
    one = Temperatures(initial=1.0)
    assert build(uni_temperature=one).losses(data)["usa"].item() == pytest.approx(0, abs=1e-13)


def test_the_cross_modal_term_uses_the_backbones_scores():
    data, built = pairs(), build()
    before = built.losses(data)
    flipped = Scores.whole(data.scores.image_to_text.flip(0), data.scores.positives)
    after = built.losses(dataclasses.replace(data, scores=flipped))
    assert after["csa"] != before["csa"]
    assert after["usa"] == before["usa"]


def test_heads_produce_both_embeddings_and_keep_tokens():
    features = Encoded(torch.randn(3, 8), torch.randn(3, 2, 8), torch.ones(3, 2).bool())
    built = CUSA().build(SimpleNamespace(dim=8))
    found = built.embed_image(features)
    assert torch.equal(found.pooled, built.heads["cross_image"](features.pooled))
    assert torch.equal(found.unimodal, built.heads["uni_image"](features.pooled))
    assert found.tokens is features.tokens
    only_cross = CUSA(beta=0).build(SimpleNamespace(dim=8)).embed_text(features)
    assert only_cross.unimodal is features.pooled
    none = CUSA(cross_head=False, uni_head=False).build(SimpleNamespace(dim=8))
    assert none.embed_text(features) is features


def test_identity_heads_only_apply_the_layer_norm():
    rows = torch.randn(3, 8, dtype=torch.float64)
    expected = torch.nn.functional.layer_norm(rows, (8,))
    found = build(head_init="identity").embed_image(pooled_only(rows)).pooled
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    assert not torch.allclose(build().embed_image(pooled_only(rows)).pooled, expected)


def test_temperatures_stay_in_their_bounds():
    built = build()
    for temperature in built.temperatures.values():
        temperature.value.data.fill_(7.0)
    built.clamp()
    assert {n: round(t.value.item(), 6) for n, t in built.temperatures.items()} == {
        "cross": 0.99, "cross_soft": 1.0, "uni_image": 1.0, "uni_text": 1.0,
    }  # fmt: skip


def test_teachers_are_never_updated():
    data = pairs()
    for name in data.extra:
        data.extra[name].requires_grad_()
    before = {name: value.detach().clone() for name, value in data.extra.items()}
    built = build()
    data.image.pooled.requires_grad_()
    sum(built.losses(data).values()).backward()
    assert all(data.extra[name].grad is None for name in data.extra)
    assert all(torch.equal(data.extra[name], before[name]) for name in before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [CUSA(), CUSA(alpha=0.3, beta=0, targets="dot", cross_temperature=SEPARATE), CUSA(0.0, 1.0, uni_loss="kl")],
    ids=["both", "csa", "usa"],
)
def test_a_checkpoint_opens_with_no_arguments(method, tmp_path):
    model = module(method)
    save_converted(model, tmp_path / "m.ckpt")
    opened = RetrievalModule.load_from_checkpoint(tmp_path / "m.ckpt")
    assert opened.describe() == model.describe()
    assert opened.loss_weights == model.loss_weights
    data = batch(model)
    for name, term in model.eval().loss_terms(data, 0.0).items():
        assert torch.equal(opened.eval().loss_terms(data, 0.0)[name], term)


def test_the_command_line_builds_it():
    options = [*TINY_VSE, "--data.root=/none", "--model.methods+=CUSA", "--model.methods.alpha=0.3"]
    options += ["--model.methods.cross_temperature.learnable=false", "--model.methods.targets=add"]
    built = TrainingCLI(options, run=False).model.methods["cusa"]
    assert not built.temperatures["cross"].value.requires_grad
    assert built.temperatures["cross"].bounds == (0.1, 0.99)
    assert built.targets == "add"


def test_mistakes_are_named():
    with pytest.raises(UserError, match="alpha is -1"):
        CUSA(alpha=-1)
    with pytest.raises(UserError, match="beta is nan"):
        CUSA(beta=float("nan"))
    with pytest.raises(UserError, match="for the uni-modal term"):
        CUSA(cross_temperature=Temperatures(sharing="cross"))
    with pytest.raises(UserError, match=r"temperature 2.0 must be within its bounds \[0.1, 1.0\]"):
        Temperatures(initial=2.0)
    with pytest.raises(UserError, match="needs teacher_image"):
        build().prepare(dataclasses.replace(batch(module(CUSA())), image_extra={}))


@pytest.mark.parametrize("parts", [0, 3])
def test_features_in_half_precision_under_autocast(parts):
    model = module(CUSA())
    model.large_batch = LargeBatch(gradient_cache=parts)
    found = []
    for mixed in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            found.append({name: value.item() for name, value in model.loss_terms(batch(model), 0.0).items()})
    assert set(found[0]) == {"objective", "cusa/csa", "cusa/usa"}
    assert found[1] == pytest.approx(found[0], rel=0.1)
