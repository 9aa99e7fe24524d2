"""Do weights fit a module? The names that wrappers add are removed, and what does not fit is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from itr.errors import UserError

T = TypeVar("T")

# Parts of names that torch.compile, FSDP and activation checkpointing add at any depth.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
NAMES_SHOWN = 3
LONGEST_NAME = 100  # characters; names come from files
COUNTER = "num_batches_tracked"  # of batch normalization


def without_wrappers(weights: Mapping[str, T], known: Collection[str]) -> dict[str, T]:
    """Weights under the names that a module has for them, if a wrapper has changed the names.

    Removed are the parts that torch.compile and FSDP add, and leading parts that all names share (`module.`, `model.`,
    `backbone.`, in any order), as far as more names are then known.

    Args:
        weights: values by name.
        known: the module's names.
    """
    names = {name: _without_parts(name) for name in weights}
    if len(set(names.values())) < len(names):
        return dict(weights)
    best, most = names, _num_known(names.values(), known)
    shorter = names
    while shorter and (shared := _shared_part(shorter.values())):
        shorter = {name: short.removeprefix(shared) for name, short in shorter.items()}
        if (found := _num_known(shorter.values(), known)) > most:
            best, most = shorter, found
    return {best[name]: value for name, value in weights.items()}


def _without_parts(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def shared_prefix(names: Iterable[str]) -> str:
    """The leading parts that all names share once wrappers are removed, with a final dot; empty if there are none."""
    rest, prefix = [_without_parts(name) for name in names], ""
    while rest and (shared := _shared_part(rest)):
        rest, prefix = [name.removeprefix(shared) for name in rest], prefix + shared
    return prefix


def _shared_part(names: Iterable[str]) -> str:
    """The first part of all names, with its dot; empty if it differs or if a name has no other part."""
    parts = {name.partition(".")[:2] for name in names}
    return "".join(next(iter(parts))) if len(parts) == 1 and all(dot for _, dot in parts) else ""


def _num_known(names: Iterable[str], known: Collection[str]) -> int:
    return sum(name in known for name in names)


@dataclass(frozen=True)
class Mismatch:
    """What does not fit between weights and a module.

    Attributes:
        missing: names that only the module has.
        unexpected: names that only the weights have.
        misshapen: for a name that both have in different shapes, a text with both shapes.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()

    def refuse(self, source: str, model: str = "the model", hint: str = "") -> None:
        """Raise an error that names the first of each kind.

        Args:
            source: where the weights come from, for the message.
            model: what they should fit, for the message.
            hint: what the user can do.

        Raises:
            UserError: something does not fit.
        """
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.misshapen}
        found = [f"{kind}: {names_in_short(names)}" for kind, names in kinds.items() if names]
        if found:
            raise UserError(f"the weights in {source} do not match {model}; {'; '.join(found)}{hint and '. ' + hint}")


def names_in_short(names: Collection[str]) -> str:
    """The first of some names, and the number of the others."""
    shown = [name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..." for name in sorted(names)[:NAMES_SHOWN]]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"{', '.join(shown)}{more}"


def missing_names(weights: Collection[str], expected: Iterable[str]) -> list[str]:
    """The names that only a module has, sorted, without counters."""
    return sorted(name for name in expected if name not in weights and not is_counter(name))


def is_counter(name: str) -> bool:
    """Whether a name is that of a counter, on which no output depends."""
    return name.rpartition(".")[2] == COUNTER


def find_mismatch(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], used: Callable[[], Collection[str]] | None = None
) -> Mismatch:
    """What does not fit between weights and the state of a module.

    Args:
        weights: tensors by name.
        expected: the module's `state_dict`.
        used: gives the names that something depends on; only these must be there. It is called only if some are
            missing. By default all.
    """
    missing = missing_names(weights, expected)
    if missing and used is not None:
        needed = used()
        missing = [name for name in missing if name in needed]
    return Mismatch(
        tuple(missing),
        tuple(sorted(weights.keys() - expected.keys())),
        tuple(
            f"{name} ({_shape(weights[name])} instead of {_shape(expected[name])})"
            for name in sorted(weights.keys() & expected.keys())
            if _shape(weights[name]) != _shape(expected[name])
        ),
    )


def fill(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    source: str,
    model: str = "the model",
    used: Callable[[], Collection[str]] | None = None,
    hint: str = "",
) -> Mismatch:
    """Copy weights into a module, without the names of wrappers; nothing is copied if they do not fit.

    Args:
        module: the module to fill.
        weights: tensors by name.
        source: where they come from, for messages.
        model: what they should fit, for messages.
        used: see `find_mismatch`.
        hint: what the user can do if they do not fit.

    Returns:
        What the module keeps from its initialization, because nothing depends on it.

    Raises:
        UserError: names are missing or unexpected, or shapes differ.
    """
    expected = module.state_dict()
    renamed = without_wrappers(weights, expected)
    find_mismatch(renamed, expected, used).refuse(source, model, hint)
    module.load_state_dict(renamed, strict=False)
    return Mismatch(missing=tuple(missing_names(renamed, expected)))


def _shape(value: object) -> str:
    """The shape of a tensor; for anything else that a file has under its name, what it is."""
    return f"[{', '.join(str(size) for size in value.shape)}]" if isinstance(value, Tensor) else type(value).__name__


def surplus_layers(unexpected: Sequence[str], known: Iterable[str]) -> list[str]:
    """Those of the names that no module has a place for that belong to further layers of one of its stacks.

    They differ from a known name only in a number, so the module was built with fewer layers than the file has.
    """
    patterns = {_pattern(name) for name in known}
    return [name for name in unexpected if any(c.isdigit() for c in name) and _pattern(name) in patterns]


def _pattern(name: str) -> str:
    return ".".join("#" if part.isdigit() else part for part in name.split("."))
