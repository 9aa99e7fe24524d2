"""CUSA: cross-modal and uni-modal soft-label alignment."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from itr.backbones.base import Backbone
from itr.data.loading.fields import CaptionTokens, Field, ImageView
from itr.errors import UserError
from itr.losses import SoftLoss, Targets, cross_modal_targets, soft_label_alignment, teacher_similarity
from itr.methods.base import Method, MethodModule
from itr.methods.cusa_teachers import TOKENS, VIEW, Teachers, teacher_features
from itr.methods.cusa_temperatures import SIDES, Temperatures
from itr.objectives import Temperature
from itr.types import Batch, Encoded, Pairs

if TYPE_CHECKING:
    from itr.teachers.base import Teacher

HeadInit = Literal["normal", "identity"]


class CUSA(Method):
    """Aligns similarities across and within modalities with the similarities of frozen uni-modal teachers.

    L = L_objective + alpha CSA + beta USA, where each term is half the sum of two soft-label alignments (see
    `itr.losses.soft_label_alignment`): CSA of image-to-text and text-to-image similarities, USA of image-image and
    text-text similarities (Huang et al., AAAI 2024, https://arxiv.org/abs/2403.05261). Separate heads produce the
    embeddings for cross-modal and for uni-modal retrieval. The authors train with `InfoNCE(scale="element_mean")`; with
    the standard scale of the objective, the same weights count B times less.

    Args:
        alpha: weight of the cross-modal term (CSA); 0 turns it off.
        beta: weight of the uni-modal term (USA); 0 turns it off, and no uni-modal head is built.
        targets: targets of CSA: `each` uses the image teacher for image-to-text and the text teacher for
            text-to-image, `add` the mean of both for both directions, `dot` their geometric mean.
        loss: `kl`, `cross_entropy`, or `cross_entropy_element_mean`, which is also divided by the batch size.
        uni_loss: the loss of USA; the same as `loss` by default.
        cross_head: whether the embeddings for cross-modal retrieval have a head (LayerNorm, then Linear).
        uni_head: whether the embeddings for retrieval within a modality have a head; without it, or if beta is 0, they
            are the embeddings of the backbone.
        head_init: initial weights of the heads: `normal` (0, 0.02), as in the authors' code, discards the structure of
            the backbone's embeddings at the start of training; `identity` preserves it.
        cross_temperature: temperature of the model's similarities in CSA, per direction or shared.
        uni_temperature: temperature of the model's similarities in USA, per modality or shared.
        cross_soft_temperature: temperature of the teachers' similarities in CSA.
        uni_soft_temperature: temperature of the teachers' similarities in USA.
        teachers: teachers to run during training; features of the others are read from `data.features`.
    """

    name = "cusa"

    def __init__(
        self,
        alpha: float = 0.1,
        beta: float = 0.5,
        targets: Targets = "each",
        loss: SoftLoss = "kl",
        uni_loss: SoftLoss | None = None,
        cross_head: bool = True,
        uni_head: bool = True,
        head_init: HeadInit = "normal",
        cross_temperature: Temperatures = Temperatures(bounds=(0.1, 0.99)),  # noqa: B008
        uni_temperature: Temperatures = Temperatures(sharing="separate"),  # noqa: B008
        cross_soft_temperature: Temperatures = Temperatures(initial=1.0, learnable=False),  # noqa: B008
        uni_soft_temperature: Temperatures = Temperatures(initial=1.0, learnable=False, sharing="cross"),  # noqa: B008
        teachers: Teachers = Teachers(),  # noqa: B008
    ) -> None:
        for name, rate in (("alpha", alpha), ("beta", beta)):
            if not 0 <= rate < float("inf"):
                raise UserError(f"CUSA.{name} is {rate}; it must be 0 (off) or a positive number")
        self.alpha, self.beta = alpha, beta
        self.targets: Targets = targets
        self.losses: dict[str, SoftLoss] = {"csa": loss, "usa": uni_loss or loss}
        self.cross_head, self.uni_head = cross_head, uni_head
        self.head_init: HeadInit = head_init
        self.temperatures = {
            "cross": cross_temperature,
            "uni": uni_temperature,
            "cross_soft": cross_soft_temperature,
            "uni_soft": uni_soft_temperature,
        }
        for group in ("cross", "cross_soft"):
            if self.temperatures[group].sharing == "cross":
                raise UserError(
                    f"CUSA.{group}_temperature: sharing `cross` is only for the uni-modal term; set it to `shared` or "
                    "`separate`"
                )
        self.teachers = teachers
        self.loaded: dict[str, Teacher] = {}
        self.needs = teachers.needs if self.weights else ()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Load the teachers that run during training; other stages do not need them."""
        if stage == "fit" and self.weights:
            self.loaded = self.teachers.load(str(trainer.strategy.root_device))
            own: Any = pl_module.methods
            own[self.name].teachers = self.loaded

    def fields(self) -> list[Field]:
        """The inputs of the loaded teachers: images preprocessed and captions tokenized as each teacher expects."""
        found: list[Field] = []
        if "image" in self.loaded and self.loaded["image"].transform is not None:
            found.append(ImageView(VIEW, self.loaded["image"].transform))
        if "text" in self.loaded and self.loaded["text"].tokenizer is not None:
            found.append(CaptionTokens(TOKENS, self.loaded["text"].tokenizer))
        return found

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the terms that are on."""
        return {name: rate for name, rate in (("csa", self.alpha), ("usa", self.beta)) if rate}

    def build(self, backbone: Backbone) -> CUSAModule:
        """Build the heads and temperatures for a backbone."""
        return CUSAModule(self, backbone.dim)


class CUSAModule(MethodModule):
    """Heads, temperatures and the two terms of CUSA.

    It has no parameters that are unused in the loss, because DDP would stop the training on them.

    Args:
        method: the settings.
        dim: width D of the backbone's embeddings.
    """

    def __init__(self, method: CUSA, dim: int) -> None:
        super().__init__()
        self.terms = tuple(method.weights)
        self.teachers: dict[str, Teacher] = {}  # not submodules, so not among the parameters or in the checkpoint
        self.targets, self.kinds = method.targets, method.losses
        built = {"cross": method.cross_head, "uni": method.uni_head and "usa" in self.terms}
        names = [f"{use}_{side}" for use in built if built[use] for side in SIDES]
        self.heads = nn.ModuleDict({name: _head(dim, method.head_init) for name in names})
        self.temperatures = nn.ModuleDict()
        self._key: dict[str, str] = {}
        for group in ("cross", "cross_soft", "uni", "uni_soft"):
            if ("csa" if group.startswith("cross") else "usa") in self.terms:
                self._add_temperatures(group, method.temperatures[group])

    def _add_temperatures(self, group: str, settings: Temperatures) -> None:
        cross = group.replace("uni", "cross")
        for side in SIDES:
            role = f"{group}_{side}"
            if settings.sharing == "cross" and f"{cross}_{side}" in self._key:
                self._key[role] = self._key[f"{cross}_{side}"]
                continue
            key = self._key[role] = role if settings.sharing == "separate" else group
            if key not in self.temperatures:
                self.temperatures[key] = Temperature(settings.initial, settings.bounds, settings.learnable)

    def temperature(self, group: str, side: str) -> Tensor:
        """The current temperature [] of `cross`, `uni`, `cross_soft` or `uni_soft` for image or text."""
        value: Tensor = self.temperatures[self._key[f"{group}_{side}"]]()
        return value

    def embed_image(self, encoded: Encoded) -> Encoded:
        """Apply the image heads; tokens are unchanged."""
        return self._embed(encoded, "image")

    def embed_text(self, encoded: Encoded) -> Encoded:
        """Apply the caption heads; tokens are unchanged."""
        return self._embed(encoded, "text")

    def _embed(self, encoded: Encoded, side: str) -> Encoded:
        if not self.heads:
            return encoded
        pooled, unimodal = encoded.pooled, encoded.within
        if f"uni_{side}" in self.heads:
            unimodal = self.heads[f"uni_{side}"](unimodal)
        if f"cross_{side}" in self.heads:
            pooled = self.heads[f"cross_{side}"](pooled)
        return encoded.replace(pooled=pooled, unimodal=unimodal)

    def prepare(self, batch: Batch) -> dict[str, Tensor]:
        """`teacher_image` and `teacher_text`: the teachers' features of each caption and its image [C, D].

        Raises:
            UserError: a teacher is not loaded and the batch does not contain its features.
        """
        if not self.terms:
            return {}
        return {f"teacher_{side}": teacher_features(batch, side, self.teachers) for side in SIDES}

    def losses(self, pairs: Pairs) -> dict[str, Tensor]:
        """The contribution of these rows to the terms that are on, not yet multiplied by their weights."""
        if not self.terms:
            return {}
        teachers = [teacher_similarity(pairs.extra[f"teacher_{side}"], pairs.rows) for side in SIDES]
        terms: dict[str, Tensor] = {}
        if "usa" in self.terms:
            own = (partial(_within, side, pairs.rows) for side in (pairs.image, pairs.text))
            terms["usa"] = self._align("usa", "uni", own, [*teachers])
        if "csa" in self.terms:
            scores = (lambda: pairs.scores.image_to_text), (lambda: pairs.scores.text_to_image)
            goals = [*cross_modal_targets(teachers[0], teachers[1], self.targets)]
            teachers.clear()
            terms["csa"] = self._align("csa", "cross", scores, goals)
        return terms

    def _align(self, term: str, group: str, own: Iterable[Callable[[], Tensor]], goals: list[Tensor]) -> Tensor:
        """Half the sum of both alignments [].

        To save memory in large batches, similarities are computed one at a time, and goals are removed from the list.
        """
        parts = [
            soft_label_alignment(
                similarity(),
                goals.pop(0),
                self.temperature(group, side),
                self.temperature(f"{group}_soft", side),
                self.kinds[term],
            )
            for similarity, side in zip(own, SIDES, strict=True)
        ]
        return torch.stack(parts).mean()

    def scalars(self) -> dict[str, Tensor]:
        """The temperatures by role."""
        return {f"temperature_{key}": value().detach() for key, value in self.temperatures.items()}

    def clamp(self) -> None:
        """Clamp the temperatures to their bounds."""
        for temperature in self.temperatures.values():
            assert isinstance(temperature, Temperature)
            temperature.clamp()


def _within(side: Encoded, rows: slice) -> Tensor:
    """Cosines of the embeddings of some rows with those of all rows, for retrieval within a modality [R, B]."""
    return side.rows(rows).unit_within @ side.unit_within.T


def _head(dim: int, init: HeadInit) -> nn.Sequential:
    linear = nn.Linear(dim, dim)
    if init == "identity":
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    else:
        nn.init.normal_(linear.weight, std=0.02)
    return nn.Sequential(nn.LayerNorm(dim), linear)
