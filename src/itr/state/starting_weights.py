"""Start a new run from the weights of an itr checkpoint: optimizer, counters and settings are those of the new run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from itr.backbones.base import Backbone
from itr.backbones.towers.training import named_for_adapters
from itr.commands.inputs import starting_checkpoint
from itr.commands.process import is_first_process
from itr.component import plain
from itr.errors import UserError, refusing
from itr.methods.base import Method
from itr.objectives import Objective
from itr.weights.matching import Mismatch, fill, find_mismatch, names_in_short
from itr.weights.reading import read_checkpoint, state_in

log = logging.getLogger(__name__)

PARTS = ("backbone.", "objective.", "methods.")  # of a model
_FREE = ("drop", "init", "lora", "cache", "freeze", "frozen", "checkpointing", "pretrained")  # parts of settings' names
HINT = "Use the model settings of its run: --config RUN/config.yaml"


@dataclass(frozen=True)
class StartingWeights:
    """The weights and the model settings in a checkpoint.

    Attributes:
        source: the file, for messages.
        tensors: by name, as in a `RetrievalModule`.
        settings: how the model was built; empty if the file does not say.
    """

    source: str
    tensors: dict[str, Tensor]
    settings: Mapping[str, Any]

    @classmethod
    def open(cls, place: str, methods: Iterable[Method] = ()) -> StartingWeights:
        """Read a checkpoint, or the best one of a run folder.

        Args:
            place: file or run folder.
            methods: the methods of the new run.

        Raises:
            UserError: there is no checkpoint, it is damaged, has no backbone, or a method replaces the backbone's
                weights.
        """
        replacing = [method.name for method in methods if method.replaces_backbone]
        if replacing:
            raise UserError(
                f"both model.weights and {replacing[0]} set the weights of the backbone; remove one (for D2S: stage1)"
            )
        path = starting_checkpoint(Path(place).expanduser())
        saved = read_checkpoint(path)
        tensors = state_in(saved, str(path))
        if not any(name.startswith("backbone.") for name in tensors):
            raise UserError(
                f"model.weights: {path} is not an itr checkpoint: it has no backbone (it has "
                f"{names_in_short(tensors)}). Weights of a tower or of CLIP are given to the backbone, such as "
                "--model.backbone.pretrained FILE"
            )
        unexpected = [name for name in tensors if not name.startswith(PARTS)]
        Mismatch(unexpected=tuple(sorted(unexpected))).refuse(str(path), "an itr checkpoint")
        settings = saved.get("hyper_parameters")
        return cls(str(path), tensors, settings if isinstance(settings, Mapping) else {})

    def fill_backbone(self, backbone: Backbone) -> None:
        """Copy the weights of the backbone, which must fit exactly; settings that differ are named.

        Raises:
            UserError: they do not fit, or belong to an architecture or vocabulary that differs.
        """
        weights = named_for_adapters(self._part("backbone."), backbone)
        fill(backbone, weights, self.source, "the backbone", hint=HINT)
        with refusing(f"{self.source} is not an itr checkpoint"):
            self._compare_settings(backbone)
        backbone.untrained = ()

    def fill_rest(self, objective: Objective, methods: nn.ModuleDict) -> None:
        """Copy the weights of the objective, if it has the same settings, and of each method that both runs have.

        What starts fresh is named.

        Raises:
            UserError: the weights of a method do not fit.
        """
        taken, fresh = ["backbone"], []
        own = self._part("objective.")
        if find_mismatch(own, objective.state_dict()) == Mismatch() and self._is_same_objective(objective):
            fill(objective, own, self.source, "the objective")
            taken.append("objective")
        else:
            fresh.append("objective")
        saved = {name.split(".")[1] for name in self.tensors if name.startswith("methods.")}
        for name, module in methods.items():
            if name in saved:
                fill(module, self._part(f"methods.{name}."), self.source, f"the method {name}", hint=HINT)
                taken.append(name)
            elif module.state_dict():
                fresh.append(name)
        if is_first_process():
            unused = sorted(saved - set(methods))
            log.info(
                "a new run with weights of %s: %s%s%s",
                self.source, ", ".join(taken), f"; with initial values: {', '.join(fresh)}" if fresh else "",
                f"; not used: {', '.join(unused)}" if unused else "",
            )  # fmt: skip

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): value for n, value in self.tensors.items() if n.startswith(prefix)}

    def _is_same_objective(self, objective: Objective) -> bool:
        """Whether it is built with the settings of the file: otherwise the user's temperature counts, for example."""
        with refusing(f"{self.source} is not an itr checkpoint"):
            return not self.settings or plain(self.settings.get("objective")) == objective.describe()

    def _compare_settings(self, backbone: Backbone) -> None:
        if not self.settings:
            return
        was, now = dict(self.settings["backbone"]["init_args"]), backbone.describe()["init_args"]
        changed = {name: (old, new) for name, old, new in _differences(was, now)}
        refused = [
            name for name in changed if name == "tokenizer_json" or ("config." in name and "image_size" not in name)
        ]
        if refused:
            old, new = changed[refused[0]]
            raise UserError(
                f"model.weights: {self.source} was trained with {refused[0]} {_short(old)}, and this run has "
                f"{_short(new)}: the same weights would give other embeddings. {HINT}"
            )
        if changed and is_first_process():
            listed = ", ".join(f"{name} {_short(old)} -> {_short(new)}" for name, (old, new) in changed.items())
            log.warning("settings of the backbone that differ from those of %s: %s", self.source, listed)


def _differences(was: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Settings by dotted name that both sides have with other values, with both; not those of training alone."""
    for name in sorted(was.keys() & now.keys()):
        old, new = was[name], now[name]
        if any(part in name for part in _FREE) or (prefix and name == "image_size"):  # positions are interpolated
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences({"quick_gelu": False, **old}, {"quick_gelu": False, **new}, f"{prefix}{name}.")
        elif plain(old) != plain(new):
            yield f"{prefix}{name}", old, new


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
