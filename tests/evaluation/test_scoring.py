"""All metrics use the same score: a model's own similarity and second stage, and the scorer named in a file."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from itr.backbones import Backbone
from itr.embedding.files import load_embeddings
from itr.errors import UserError
from itr.evaluation.cosine import Cosine
from itr.evaluation.gallery import Gallery
from itr.evaluation.model_score import ModelScore
from itr.evaluation.ranks import Matches, rank
from itr.evaluation.retrieval import evaluate
from itr.evaluation.score import Score
from itr.evaluation.scoring import CosineScorer, ModelScorer, mean_scores, scorer_of
from itr.types import Encoded
from late_interaction import LateInteraction


class Bilinear(nn.Module):
    """A simple model that compares images and captions through a matrix, with a second stage on tokens."""

    needs_tokens = True

    def __init__(self, rescored: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(4, 4, generator=generator))
        self.methods = nn.ModuleDict()
        self.backbone = type("Own", (SimpleNamespace,), {"similarity": self.similarity})(rescored=rescored)
        self.backbone.rescore = self.rescore

    def similarity(self, image: Encoded, text: Encoded) -> Tensor:
        return image.pooled @ self.weight @ text.pooled.T

    def rescore(self, image: Encoded, text: Encoded) -> Tensor:
        return (image.tokens.mean(dim=1) * text.tokens.amax(dim=1)).sum(dim=1)


def side(count: int, seed: int) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(count, 3, 4, generator=generator)
    return Encoded(tokens.mean(dim=1), tokens, torch.ones(count, 3, dtype=torch.bool))


def gallery(model: Bilinear | None, images: int = 11, captions: int = 23) -> Gallery:
    owner = torch.arange(captions) % images
    ids = torch.arange(images), torch.arange(captions)
    scorer = CosineScorer() if model is None else ModelScorer(model)
    return Gallery(side(images, 0), ids[0], side(captions, 1), ids[1], owner, scorer)


def test_tiles_pairs_and_candidates_agree_with_the_similarity():
    made = gallery(Bilinear())
    score = made.score()
    assert isinstance(score, ModelScore)
    whole = Bilinear().similarity(made.image, made.text)
    score.block = 3
    torch.testing.assert_close(score(slice(2, 9), slice(4, 20)), whole[2:9, 4:20])
    torch.testing.assert_close(score(slice(None), slice(None)), whole)
    rows, columns = torch.tensor([0, 10, 3] * 7), torch.tensor([22, 0, 5] * 7)
    torch.testing.assert_close(score.pairs(rows, columns), whole[rows, columns])
    torch.testing.assert_close(score.candidates("i2t", slice(1, 4)), whole[1:4])
    torch.testing.assert_close(score.candidates("t2i", slice(1, 4)), whole[:, 1:4].T)
    own = made.own_image()
    matched = whole[own, torch.arange(23)]
    wanted = (matched.mean().item(), (whole.sum() - matched.sum()).item() / (11 * 23 - 23))
    assert mean_scores(score, own) == pytest.approx(wanted, abs=1e-5)


def by_hand(made: Gallery, model: Bilinear, number: int) -> dict[str, list[int]]:
    """Ranks by a plain loop: sort by the first stage, then sort the first `number` candidates by the second."""
    first, own, found = model.similarity(made.image, made.text), made.own_image().tolist(), {"i2t": [], "t2i": []}
    for way, scores in (("i2t", first), ("t2i", first.T)):
        for query, row in enumerate(scores.tolist()):
            order = sorted(range(len(row)), key=lambda c: -row[c])
            best = order[:number]
            pair = [(query, c) if way == "i2t" else (c, query) for c in best]
            scored = [model.rescore(made.image.rows([i]), made.text.rows([t])) for i, t in pair]
            second = dict(zip(best, map(float, scored), strict=True))
            order = sorted(best, key=lambda c: -second[c]) + order[number:]
            right = [own[c] == query for c in order] if way == "i2t" else [c == own[query] for c in order]
            if any(right):
                found[way].append(right.index(True))
    return found


@pytest.mark.parametrize("number", [1, 4, 30])
def test_the_second_stage_sorts_the_shortlist_of_the_first(number):
    model = Bilinear(rescored=number)
    made = gallery(model)
    score = made.score()
    found = rank(score, Matches.own(made.own_image(), 11))
    wanted = by_hand(made, model, number)
    assert found.image_to_text.tolist() == wanted["i2t"]
    assert found.text_to_image.tolist() == wanted["t2i"]
    assert rank(score, Matches.own(made.own_image(), 11), ways=("t2i",)).text_to_image.tolist() == wanted["t2i"]
    figures = evaluate(made)
    assert figures["i2t_r5"] == pytest.approx(100 * np.mean(np.array(wanted["i2t"]) < 5))
    if 1 < number < 11:
        plain = rank(gallery(Bilinear()).score(), Matches.own(made.own_image(), 11))
        assert plain.image_to_text.tolist() != wanted["i2t"], "a second stage that changes nothing proves nothing"


def test_a_rescored_pair_depends_on_the_query():
    score = gallery(Bilinear(rescored=2)).score()
    with pytest.raises(AssertionError, match="depends on the query"):
        score(slice(0, 1), slice(0, 1))


def test_a_plain_cosine_is_scored_exactly_with_any_backbone(vse_module):
    assert isinstance(scorer_of(vse_module), CosineScorer)
    assert isinstance(gallery(None).score(), Cosine)


@pytest.fixture(scope="module")
def vse_module() -> SimpleNamespace:
    """The parts that `scorer_of` reads of a model without its own similarity."""
    backbone = type("Plain", (SimpleNamespace,), {"similarity": Backbone.similarity})(rescored=0)
    return SimpleNamespace(backbone=backbone, methods=nn.ModuleDict())


def test_late_interaction_has_its_own_score():
    assert LateInteraction.similarity is not Backbone.similarity


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_a_file_is_scored_only_by_the_scorer_it_names(tmp_path, kind):
    model = Bilinear()
    made = gallery(model)
    made.image.extra["log_variance"] = torch.randn(11, 4)
    path = tmp_path / f"e.{kind}"

    def write(**changes: np.ndarray | None) -> None:
        arrays = {name: value for name, value in (made.arrays() | changes).items() if value is not None}
        if kind == "npz":
            np.savez(path, **arrays)
            return
        name = str(arrays.pop("scored_by", "cosine"))
        save_file({key: torch.from_numpy(value) for key, value in arrays.items()}, path, {"scored_by": name})

    write()
    again = load_embeddings(path, ModelScorer(model))
    assert evaluate(again) == evaluate(made)
    assert torch.equal(again.image.extra["log_variance"], made.image.extra["log_variance"])
    assert evaluate(again) != evaluate(gallery(None))
    with pytest.raises(UserError, match=r"scored by .*Own, weights .*not by cosine.*--ckpt_path"):
        load_embeddings(path)
    write(text_tokens=None)
    with pytest.raises(UserError, match="no token-level features"):
        load_embeddings(path, ModelScorer(model))
    write(scored_by=None)
    with pytest.raises(UserError, match="scored by cosine, not by"):
        load_embeddings(path, ModelScorer(model))
    assert evaluate(load_embeddings(path)) == evaluate(gallery(None))
    other = Bilinear()
    other.weight.data += 1
    write()
    with pytest.raises(UserError, match="weights"):
        load_embeddings(path, ModelScorer(other))


def test_all_scores_implement_the_same_interface():
    for score in (gallery(None).score(), gallery(Bilinear()).score(), gallery(Bilinear(rescored=2)).score()):
        assert isinstance(score, Score)
        assert score.candidates("i2t", slice(0, 4)).shape == (4, 23)
        assert score.candidates("t2i", slice(0, 4)).shape == (4, 11)
        assert score.pairs(torch.tensor([1]), torch.tensor([2])).shape == (1,)
        assert (score.num_queries("i2t"), score.num_queries("t2i")) == (11, 23)
