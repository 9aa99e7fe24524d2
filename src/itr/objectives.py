"""Base objectives: a loss on the similarity matrix with its own parameters and schedule."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from itr import losses
from itr.component import Component
from itr.losses.contrastive import Scale
from itr.types import Scores


class Objective(Component, nn.Module, ABC):
    """A loss on the similarity matrix of a batch."""

    @abstractmethod
    def forward(self, scores: Scores, progress: float) -> Tensor:
        """The part of the loss [] that belongs to some rows of the matrix.

        The loss of a batch is the sum over blocks of rows, however the rows are divided: by default one block, or
        several with `itr.training.large_batch`. So sum over rows and divide by `scores.size`, not by the number of
        rows in the block.

        Args:
            scores: these rows against all pairs of all processes.
            progress: epochs completed so far, including the fraction of the current one.
        """

    def scalars(self) -> dict[str, Tensor]:
        """Values to log, by name."""
        return {}

    def clamp(self) -> None:
        """Clamp learnable values to their bounds; called after each optimizer step."""


class Temperature(nn.Module):
    """A temperature t within bounds, optionally learnable.

    Args:
        initial: initial value.
        bounds: minimum and maximum value.
        learnable: whether the optimizer updates it.
    """

    def __init__(self, initial: float, bounds: tuple[float, float], learnable: bool) -> None:
        super().__init__()
        low, high = bounds
        if not 0 < low <= initial <= high:
            raise ValueError(f"temperature {initial} must be within its bounds {list(bounds)}, which must be positive")
        self.bounds = (low, high)
        self.value = nn.Parameter(torch.tensor(float(initial)), requires_grad=learnable)

    def forward(self) -> Tensor:
        """The current value []."""
        return self.value

    @torch.no_grad()
    def clamp(self) -> None:
        """Clamp the value to its bounds."""
        self.value.clamp_(*self.bounds)


class InfoNCE(Objective):
    """Softmax contrastive loss over all pairs of the batch (see `itr.losses.info_nce`).

    Args:
        temperature: initial temperature.
        temperature_bounds: minimum and maximum temperature.
        learnable_temperature: whether training updates the temperature.
        scale: `standard`, or `element_mean`, which divides by the batch size again, as CUSA's authors do.
    """

    def __init__(
        self,
        temperature: float = 0.05,
        temperature_bounds: tuple[float, float] = (0.01, 0.1),
        learnable_temperature: bool = True,
        scale: Scale = "standard",
    ) -> None:
        super().__init__()
        self.temperature = Temperature(temperature, temperature_bounds, learnable_temperature)
        self.scale: Scale = scale

    def forward(self, scores: Scores, progress: float) -> Tensor:
        """The part of the loss []; see `Objective.forward`."""
        return losses.info_nce(scores, self.temperature(), self.scale)

    def scalars(self) -> dict[str, Tensor]:
        """The temperature."""
        return {"temperature": self.temperature().detach()}

    def clamp(self) -> None:
        """Clamp the temperature to its bounds."""
        self.temperature.clamp()


class Triplet(Objective):
    """Hinge triplet loss: all violations at first, then only the hardest of each row (see `itr.losses.triplet`).

    Args:
        margin: minimum difference between the cosines of a pair and a negative.
        hardest_after: epochs (may be fractional) after which only the hardest negative counts.
        ramp: epochs over which the loss weight grows linearly from 0 to 1; 0 disables it.
    """

    def __init__(self, margin: float = 0.2, hardest_after: float = 1.0, ramp: float = 0.0) -> None:
        super().__init__()
        for name, value in (("margin", margin), ("hardest_after", hardest_after), ("ramp", ramp)):
            if value < 0:
                raise ValueError(f"{name}={value} must not be negative")
        self.margin, self.hardest_after, self.ramp = margin, hardest_after, ramp

    def forward(self, scores: Scores, progress: float) -> Tensor:
        """The part of the loss []; see `Objective.forward`."""
        loss = losses.triplet(scores, self.margin, self.negatives(progress))
        return loss * min(1.0, progress / self.ramp) if self.ramp else loss

    def negatives(self, progress: float) -> losses.Negatives:
        """Which negatives count after `progress` epochs."""
        return "hardest" if progress >= self.hardest_after else "all"


class Sigmoid(Objective):
    """Pairwise sigmoid loss of SigLIP (see `itr.losses.sigmoid`).

    Args:
        temperature: initial temperature; the paper starts at 1/10.
        temperature_bounds: minimum and maximum temperature.
        bias: initial bias of the logits; the paper starts at -10.
        learnable: whether training updates temperature and bias.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        temperature_bounds: tuple[float, float] = (0.005, 1.0),
        bias: float = -10.0,
        learnable: bool = True,
    ) -> None:
        super().__init__()
        self.temperature = Temperature(temperature, temperature_bounds, learnable)
        self.bias = nn.Parameter(torch.tensor(float(bias)), requires_grad=learnable)

    def forward(self, scores: Scores, progress: float) -> Tensor:
        """The part of the loss []; see `Objective.forward`."""
        return losses.sigmoid(scores, self.temperature(), self.bias)

    def scalars(self) -> dict[str, Tensor]:
        """Temperature and bias."""
        return {"temperature": self.temperature().detach(), "bias": self.bias.detach()}

    def clamp(self) -> None:
        """Clamp the temperature to its bounds."""
        self.temperature.clamp()
