"""How pairs are scored: the single entry point for validation, test, protocols, report and embedding files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from itr.backbones.base import Backbone
from itr.component import class_path
from itr.evaluation.cosine import Cosine
from itr.evaluation.model_score import ModelScore, on_model
from itr.evaluation.rerank import Reranked
from itr.evaluation.score import Score
from itr.files.digests import weights_identity
from itr.types import Encoded

COSINE = "cosine"


class Scorer(Protocol):
    """Scores the embeddings of a gallery."""

    @property
    def name(self) -> str:
        """Its name in embedding and metrics files; scorers of equal names give equal scores."""
        ...

    @property
    def needs_tokens(self) -> bool:
        """Whether the scorer uses token-level features."""
        ...

    def score(self, image: Encoded, text: Encoded, device: torch.device) -> Score:
        """Score images [N] against captions [M] on `device`."""
        ...


@dataclass(frozen=True)
class CosineScorer:
    """The cosine of the pooled embeddings; it needs no model."""

    name: str = COSINE
    needs_tokens: bool = False

    def score(self, image: Encoded, text: Encoded, device: torch.device) -> Score:
        """The exact cosines of images [N] and captions [M]."""
        return Cosine(image.pooled.to(device), text.pooled.to(device))


@dataclass
class ModelScorer:
    """The similarity of a model that scores pairs by more than the cosine, and its second stage if it has one.

    Attributes:
        model: an `itr.module.RetrievalModule`.
    """

    model: Any

    @cached_property
    def name(self) -> str:
        """The classes that compute the score, and a hash of all weights."""
        methods = [method for method in self.model.methods.children() if _changes_scores(method)]
        classes = [class_path(type(part)) for part in (self.model.backbone, *methods)]
        return f"{' + '.join(classes)}, weights {weights_identity(self.model.state_dict())}"

    @property
    def needs_tokens(self) -> bool:
        """Whether the model uses token-level features."""
        return bool(self.model.needs_tokens)

    def score(self, image: Encoded, text: Encoded, device: torch.device) -> Score:
        """Score images [N] against captions [M]; moves the model to `device`."""
        model = self.model.to(device)
        image, text = (on_model(side, model, device) for side in (image, text))
        first: Score = ModelScore(model, image, text) if _scores_pairs(model) else Cosine(image.pooled, text.pooled)
        return Reranked(first, model.backbone, image, text) if model.backbone.rescored else first


def scorer_of(model: Any) -> Scorer:
    """The scorer for the embeddings of an `itr.module.RetrievalModule`."""
    return ModelScorer(model) if _scores_pairs(model) or model.backbone.rescored else CosineScorer()


def mean_scores(score: Score, own_image: Tensor) -> tuple[float, float]:
    """Mean score of captions with their own images, and with all other images (NaN if there is only one image).

    Args:
        score: the scores of N images and M captions.
        own_image: row of each caption's image [M].
    """
    score = score.first if isinstance(score, Reranked) else score  # the second stage does not score most pairs
    own = score.pairs(own_image, torch.arange(len(own_image), device=own_image.device)).double()
    number = score.num_images * score.num_texts
    others = number - len(own)
    return own.mean().item(), (number * score.mean() - own.sum().item()) / others if others else float("nan")


def _scores_pairs(model: Any) -> bool:
    """Whether a model scores pairs by more than the cosine of the pooled embeddings."""
    overridden = type(model.backbone).similarity is not Backbone.similarity
    return overridden or any(_changes_scores(method) for method in model.methods.children())


def _changes_scores(method: Any) -> bool:
    from itr.methods.base import MethodModule  # it imports Lightning, which a help text does without

    return type(method).change_scores is not MethodModule.change_scores
