"""Settings of CUSA's temperatures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from itr.errors import UserError

SIDES: Final = ("image", "text")


@dataclass(frozen=True)
class Temperatures:
    """The temperatures of a loss term, for both directions or for both modalities.

    Args:
        initial: initial value.
        bounds: lowest and highest value.
        learnable: whether they are trained.
        sharing: `shared` is one temperature for both, `separate` one each; `cross`, for the uni-modal term, uses those
            of the cross-modal term, and means `shared` if that term is off.
    """

    initial: float = 0.45
    bounds: tuple[float, float] = (0.1, 1.0)
    learnable: bool = True
    sharing: Literal["shared", "separate", "cross"] = "shared"

    def __post_init__(self) -> None:
        """Check that the initial value is within the bounds."""
        low, high = self.bounds
        if not 0 < low <= self.initial <= high:
            raise UserError(
                f"temperature {self.initial} must be within its bounds {[low, high]}, and the bounds must be above 0"
            )
