"""What may have been meant by a mistyped option, class or argument of a class."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable
from inspect import isabstract, signature
from typing import Any

from itr.component import Component, subclasses

# Classes of Lightning that an option takes by their names, by the last part of the option.
LIGHTNING = {"callbacks": "callbacks", "logger": "loggers", "profiler": "profilers", "strategy": "strategies"}


def did_you_mean(names: Iterable[str]) -> str:
    """The question, such as "did you mean VSE or CLIP?"; empty without names."""
    joined = " or ".join(names)
    return f"did you mean {joined}?" if joined else ""


def near_options(name: str, options: Iterable[str]) -> list[str]:
    """Options that may have been meant by `name`: those with the same last part, a similar one, or similar as a whole.

    Args:
        name: what was given, without dashes.
        options: the names that exist, without dashes.
    """
    first, last = name.partition(".")[0], name.rpartition(".")[2]
    others = [option for option in options if not name.startswith(f"{option}.")]  # not `model` for `model.lr`
    likeness = {option: _likeness(last, option.rpartition(".")[2]) for option in others}
    best = sorted(
        (option for option in others if likeness[option] >= 0.8),
        key=lambda option: (likeness[option], option.partition(".")[0] == first, _likeness(name, option)),
        reverse=True,
    )
    best = [option for option in best if likeness[option] == likeness[best[0]]]
    return best[:3] or difflib.get_close_matches(name, others, n=3, cutoff=0.7)


def _likeness(one: str, two: str) -> float:
    return difflib.SequenceMatcher(None, one, two).ratio()


def near_classes(name: str, option: str = "") -> list[str]:
    """Classes that may have been meant by a name or a dotted path, given likewise.

    Args:
        name: such as `VSEE` or `itr.methods.CUSAA`.
        option: the option that it was given to, such as `trainer.callbacks`.
    """
    module, _, short = name.rpartition(".")
    known = _classes(sys.modules[module]) if module in sys.modules else []
    if near := difflib.get_close_matches(short, known, n=2):
        return [f"{module}.{match}" for match in near]
    return difflib.get_close_matches(short, [*component_names(), *_lightning_names(option)], n=2)


def _classes(module: Any) -> list[str]:
    return [name for name, value in vars(module).items() if isinstance(value, type) and not isabstract(value)]


def _lightning_names(option: str) -> list[str]:
    package = LIGHTNING.get(option.rpartition(".")[2]) if option.startswith("trainer.") else None
    return list(getattr(sys.modules.get(f"lightning.pytorch.{package}"), "__all__", []))


def component_names() -> list[str]:
    """Names of all classes imported so far that a config can select."""
    return sorted({cls.__name__ for cls in subclasses(Component) if not isabstract(cls)})


def near_arguments(path: str, name: str) -> list[str]:
    """Arguments that may have been meant by `name`, of the imported class with this dotted path."""
    module, _, cls = path.rpartition(".")
    return difflib.get_close_matches(name, signature(getattr(sys.modules[module], cls)).parameters, n=2)


UNKNOWN_CLASS = re.compile(
    r"Expected a dot import path string: (?P<short>\w+)|Problem with given class_path '(?P<path>[\w.]+)':\s+"
    r"(?:module '(?P<holder>[\w.]+)' has no attribute '(?P<member>\w+)'|No module named '(?P<module>[\w.]+)')"
)


def unknown_class(text: str) -> str:
    """The parser's message about a class that does not exist in one line, with near matches; empty for other errors."""
    found = UNKNOWN_CLASS.search(text)
    keys = re.findall(r"Parser key \"([\w.]+)\":", text[: found.start()]) if found else []
    if found is None or not keys or (found["path"] and not f"{found['path']}.".startswith(_missing(found))):
        return ""  # such as an import that fails inside a module of the user
    name, option = found["short"] or found["path"], ".".join(keys)
    hint = did_you_mean(near_classes(name, keys[0]))
    return f"{option}: the class {name} does not exist{'; ' * bool(hint)}{hint}"


def _missing(found: re.Match[str]) -> str:
    """The module or the member of a module that does not exist, with a final dot."""
    return f"{found['module']}." if found["module"] else f"{found['holder']}.{found['member']}."
