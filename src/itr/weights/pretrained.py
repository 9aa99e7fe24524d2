"""Load models of other libraries, and refuse those of which a part that is used would keep random weights."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from itr.commands.process import is_first_process
from itr.errors import UserError
from itr.private_api.torch import state_loads_through
from itr.private_api.transformers import LoadedModel, recorded_loads
from itr.weights.dependencies import Run, used_names
from itr.weights.matching import (
    WRAPPERS,
    Mismatch,
    find_mismatch,
    is_counter,
    missing_names,
    names_in_short,
    shared_prefix,
    surplus_layers,
    without_wrappers,
)
from itr.weights.reading import read_weights

log = logging.getLogger(__name__)
M = TypeVar("M", bound=nn.Module)


def load_pretrained(load: Callable[..., M], source: str, model: str, run: Run | None = None) -> M:
    """Load a model by a library that uses transformers, and check that what it uses comes from the files.

    Weights whose names a wrapper has changed are loaded a second time, under the right names.

    Args:
        load: returns the model; it is called with further arguments for `from_pretrained`.
        source: name or folder, for messages.
        model: what is loaded, for messages.
        run: gives the output that is used, from the model; by default all weights are needed.

    Raises:
        UserError: weights that the output depends on are missing, or do not fit.
        Exception: of any type, from `load`.
    """
    with recorded_loads() as loads:
        loaded = load()
    mapping = _mapping(loads)
    if mapping and any(found.missing for found in loads):
        with recorded_loads() as loads:
            loaded = load(key_mapping=mapping)
    unused = _unused_parameters(loaded, run) if run is not None and any(found.missing for found in loads) else set()
    for found in loads:
        _refuse(found, unused, source, model)
    announce(source, model, sum(len(found.model.state_dict()) - len(found.missing) for found in loads),
             [name for found in loads for name in found.missing],
             [name for found in loads for name in found.unexpected])  # fmt: skip
    return loaded


def source_of(name: str) -> dict[str, Any]:
    """The arguments with which `from_pretrained` takes the weights of a name or folder.

    Those in torch's format in a local folder are read by our own reader, which finds them under the usual keys and
    beside settings, where transformers refuses the file or finds nothing.

    Raises:
        UserError: such a file could not be read.
    """
    file = Path(name, "pytorch_model.bin")
    preferred = (file.with_name(f"model.safetensors{ending}") for ending in ("", ".index.json"))
    if not file.is_file() or any(other.exists() for other in preferred):
        return {"pretrained_model_name_or_path": name}
    return {"pretrained_model_name_or_path": None, "state_dict": read_weights(file).tensors}


def announce(source: str, model: str, count: int, missing: list[str], unexpected: list[str]) -> None:
    """Log what has been loaded, in one line: also what the files lack and what they have in addition."""
    if not is_first_process():
        return
    lacks = f"; without {names_in_short(missing)}, on which no output depends" if missing else ""
    more = f"; not used: {names_in_short(unexpected)}" if unexpected else ""
    log.info("%s: %d tensors loaded from %s%s%s", model, count, source, lacks, more)


def _mapping(loads: list[LoadedModel]) -> dict[str, str]:
    """Patterns that remove the names of wrappers from the names in the files; empty if there are none.

    Names that could not be placed show which: every name has the same first parts, so none could be placed.
    """
    found: dict[str, str] = {}
    for load in loads:
        names = [*load.unexpected]
        inner = {part for name in names for part in name.split(".") if part in WRAPPERS}
        found |= {rf"{re.escape(part)}\.": "" for part in sorted(inner)}
        placed = len(load.model.state_dict()) > len(load.missing)
        if names and not placed and (shared := shared_prefix(names)):
            found[f"^{re.escape(shared)}"] = ""
    return found


def _refuse(found: LoadedModel, unused: set[int], source: str, model: str) -> None:
    inner = found.model
    parameters = dict(inner.named_parameters())
    missing = [
        name
        for name in found.missing
        if not is_counter(name) and not (name in parameters and id(parameters[name]) in unused)
    ]
    prefix = f"{getattr(inner, 'base_model_prefix', '')}."
    known = set(inner.state_dict())
    surplus = surplus_layers([name.removeprefix(prefix) for name in found.unexpected], known)
    unexpected = found.unexpected if missing else surplus
    hint = "The config has fewer layers than the file" if surplus and not missing else ""
    Mismatch(tuple(missing), tuple(unexpected), found.misshapen).refuse(source, model, hint)
    if found.errors:
        raise UserError(f"could not convert the weights in {source}: {' '.join(found.errors[0].split())[:300]}")


def _unused_parameters(module: nn.Module, run: Run) -> set[int]:
    """Ids of the parameters that the output does not depend on; none if the module cannot run."""
    used = used_names(module, run)
    return {id(parameter) for name, parameter in module.named_parameters() if name not in used}


@contextmanager
def checked_state_loads(source: str, model: str, used: Callable[[nn.Module], set[str]]) -> Iterator[None]:
    """Within the block, every `load_state_dict` understands the names of wrappers, and checks what is missing.

    Weights that lack something that is used are refused. For libraries that load with `strict=False` and say nothing,
    such as timm.

    Args:
        source: where the weights come from, for messages.
        model: what they should fit, for messages.
        used: names in the `state_dict` of a module that its output depends on; called if some are missing.

    Raises:
        UserError: such weights are missing, or none fit.
    """

    def check(module: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        own = module.state_dict()
        renamed = without_wrappers(weights, own)
        found = find_mismatch(renamed, own, lambda: used(module))
        if found.missing:
            found.refuse(source, model)
        missing = missing_names(renamed, own)
        announce(source, model, len(own) - len(missing), missing, list(found.unexpected))
        return renamed

    with state_loads_through(check):
        yield
