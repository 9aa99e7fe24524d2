"""A module whose checkpoint opens alone: it says how to build the module anew and where its random numbers stand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import lightning.pytorch as pl
import torch
from torch import Tensor

from itr.component import INSTANTIATOR, check_description
from itr.errors import refusing
from itr.state import random_state
from itr.state.offline import sealed


class SelfDescribing(pl.LightningModule, ABC):
    """Writes its description into its checkpoints, and is built from one."""

    _random_state: dict[str, Tensor] | None = None

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The arguments of an equal module, as plain types."""

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: Any, map_location: Any = None, **options: Any
    ) -> Self:
        """As Lightning does, of a local file whose description names nothing but known components.

        Raises:
            UserError: it names others.
        """
        saved = torch.load(checkpoint_path, weights_only=True, map_location="cpu", mmap=True)
        description = check_description(saved[cls.CHECKPOINT_HYPER_PARAMS_KEY], str(checkpoint_path))
        options.pop("weights_only", None)
        with refusing(f"{checkpoint_path} is not an itr checkpoint"), sealed(description):
            return super().load_from_checkpoint(checkpoint_path, map_location, weights_only=True, **options)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write how to build this module again: plain types, and nothing that has to be fetched.

        `load_from_checkpoint` hands them to jsonargparse, which instantiates the class paths.
        """
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = {
            **self.describe(),
            "_instantiator": INSTANTIATOR,
        }
        # A run that goes on and has not drawn yet hands on what it was given.
        checkpoint["random_state"] = self._random_state or random_state.collect(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the random numbers until training is about to go on."""
        self._random_state = checkpoint.get("random_state")

    def on_train_batch_start(self, *_: Any) -> None:
        """Go on with the random numbers of the run that is resumed, now that nothing else will draw."""
        if self._random_state is not None:
            random_state.restore(self._random_state, self.device)
            self._random_state = None
