"""CUSA: cross-modal and uni-modal soft-label alignment."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from itr.backbones.base import Backbone
from itr.data.loading.fields import CaptionTokens, Field, ImageView
from itr.errors import UserError
from itr.losses import SoftLoss, Targets, cross_modal_targets, soft_label_alignment, teacher_similarity
from itr.methods.base import Method, MethodModule
from itr.methods.cusa_teachers import TOKENS, VIEW, Teachers, teacher_features
from itr.objectives import Temperature
from itr.types import Batch, Encoded, Pairs

if TYPE_CHECKING:
    from itr.teachers.base import Teacher

SIDES: Final = ("image", "text")
HeadInit = Literal["normal", "identity"]


@dataclass(frozen=True)
class Temperatures:
    """The temperatures of both directions, or of both modalities, of a term.

    Args:
        initial: value at the start.
        bounds: smallest and largest value.
        learnable: whether training moves them.
        sharing: `shared` is one for both, `separate` one each; `cross`, for the uni-modal term, takes those of the
            cross-modal term, and is `shared` where that is off.
    """

    initial: float = 0.45
    bounds: tuple[float, float] = (0.1, 1.0)
    learnable: bool = True
    sharing: Literal["shared", "separate", "cross"] = "shared"

    def __post_init__(self) -> None:
        """Refuse what can't be, before anything is built."""
        low, high = self.bounds
        if not 0 < low <= self.initial <= high:
            raise UserError(f"temperature {self.initial} must lie within its bounds {[low, high]}, and those above 0")


class CUSA(Method):
    """Alignment of similarities across and within modalities with those of frozen uni-modal teachers.

    L = L_objective + alpha CSA + beta USA, where each term is half the sum of two soft-label alignments (see
    `itr.losses.soft_label_alignment`): CSA of image-to-text and text-to-image similarities, USA of image-image and
    text-text similarities (Huang et al., AAAI 2024, https://arxiv.org/abs/2403.05261). A head before each of the
    embeddings for cross-modal and for uni-modal search keeps them apart. The authors train with
    `InfoNCE(scale="element_mean")`; beside the standard scale the same rates weigh B times less.

    Args:
        alpha: rate of the cross-modal term (CSA); 0 switches it off.
        beta: rate of the uni-modal term (USA); 0 switches it off, and no uni-modal head is built.
        targets: what CSA follows: `each` takes the image teacher for image-to-text and the text teacher for
            text-to-image, `add` the mean of both for both, `dot` their geometric mean.
        loss: `kl`, `cross_entropy`, or `cross_entropy_element_mean`, which is divided by the batch size once more.
        uni_loss: the same for USA; as `loss` where missing.
        cross_head: whether embeddings for cross-modal search get a head (LayerNorm, then Linear).
        uni_head: whether embeddings for search within a modality get one; without it, or with beta 0, they are
            what the backbone gives.
        head_init: how the heads' linear layers start: `normal` (0, 0.02), as the authors' do, throws away what the
            backbone's embeddings have in common with their teachers' or with a first stage's; `identity` keeps it.
        cross_temperature: of the model's similarities in CSA, one for each direction or for both.
        uni_temperature: of the model's similarities in USA, one for each modality or for both.
        cross_soft_temperature: of the teachers' similarities in CSA.
        uni_soft_temperature: of the teachers' similarities in USA.
        teachers: which of them run in the loop; the others' features are read from `data.features`.
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
                raise UserError(f"CUSA's {name} is {rate}; it must be 0 (off) or a positive number")
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
                raise UserError(f"{group}_temperature: sharing `cross` is for the uni-modal term; shared or separate")
        self.teachers = teachers
        self.loaded: dict[str, Teacher] = {}
        self.needs = teachers.needs if self.weights else ()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Load the teachers that run in the loop, for training alone."""
        if stage == "fit" and self.weights:
            self.loaded = self.teachers.load(str(trainer.strategy.root_device))
            own: Any = pl_module.methods
            own[self.name].teachers = self.loaded

    def fields(self) -> list[Field]:
        """What teachers in the loop are shown: images in the teacher's own view, captions in its own tokens."""
        found: list[Field] = []
        if "image" in self.loaded and self.loaded["image"].transform is not None:
            found.append(ImageView(VIEW, self.loaded["image"].transform))
        if "text" in self.loaded and self.loaded["text"].tokenizer is not None:
            found.append(CaptionTokens(TOKENS, self.loaded["text"].tokenizer))
        return found

    @property
    def weights(self) -> dict[str, float]:
        """The rates of the terms that are on."""
        return {name: rate for name, rate in (("csa", self.alpha), ("usa", self.beta)) if rate}

    def build(self, backbone: Backbone) -> CUSAModule:
        """Make heads and temperatures for a backbone."""
        return CUSAModule(self, backbone.dim)


class CUSAModule(MethodModule):
    """Heads, temperatures and the two terms of CUSA.

    Nothing is built that no loss reaches: under DDP that would stop the training.

    Args:
        method: the knobs.
        dim: width D of the backbone's embeddings.
    """

    def __init__(self, method: CUSA, dim: int) -> None:
        super().__init__()
        self.terms = tuple(method.weights)
        self.teachers: dict[str, Teacher] = {}  # no modules, so neither parameters nor checkpoint know them
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
        """Put images through their heads; tokens stay."""
        return self._embed(encoded, "image")

    def embed_text(self, encoded: Encoded) -> Encoded:
        """Put captions through their heads; tokens stay."""
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
        """`teacher_image` and `teacher_text`, the teachers' features of each caption and its image [C, D].

        Raises:
            UserError: neither does a teacher run in the loop nor has the batch its features.
        """
        if not self.terms:
            return {}
        return {f"teacher_{side}": teacher_features(batch, side, self.teachers) for side in SIDES}

    def losses(self, pairs: Pairs) -> dict[str, Tensor]:
        """The share of these rows in the terms that are on, not yet multiplied by their rates."""
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

        In large batches each matrix counts: similarities are made when it is their turn, and goals taken from the list.
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
        """The temperatures, by their role."""
        return {f"temperature_{key}": value().detach() for key, value in self.temperatures.items()}

    def clamp(self) -> None:
        """Keep the temperatures in their bounds."""
        for temperature in self.temperatures.values():
            assert isinstance(temperature, Temperature)
            temperature.clamp()


def _within(side: Encoded, rows: slice) -> Tensor:
    """Cosines of some embeddings for search within a modality with all of them [R, B]."""
    return side.rows(rows).unit_within @ side.unit_within.T


def _head(dim: int, init: HeadInit) -> nn.Sequential:
    linear = nn.Linear(dim, dim)
    if init == "identity":
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    else:
        nn.init.normal_(linear.weight, std=0.02)
    return nn.Sequential(nn.LayerNorm(dim), linear)
