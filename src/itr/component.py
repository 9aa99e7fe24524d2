"""Objects that remember how they were built, so that a checkpoint can build them again."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any


class Component:
    """Base of everything that a config selects by class path: backbones, objectives, methods.

    The arguments of the outermost `__init__` are kept; `describe` gives them back as plain types in the form that
    jsonargparse reads, which is what `RetrievalModule` writes into a checkpoint.
    """

    init_args: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = _remember(cls.__init__)  # type: ignore[method-assign]

    def describe(self) -> dict[str, Any]:
        """Class path and arguments from which an equal component (without its weights) is built."""
        return {"class_path": class_path(type(self)), "init_args": plain(getattr(self, "init_args", {}))}


def class_path(cls: type) -> str:
    """The dotted path of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def plain(value: Any) -> Any:
    """`value` in types that YAML and a `weights_only` checkpoint can hold."""
    if isinstance(value, Component):
        return value.describe()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def _remember(init: Any) -> Any:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        if "init_args" not in self.__dict__:  # a subclass that calls super().__init__ keeps its own
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            object.__setattr__(self, "init_args", dict(list(bound.arguments.items())[1:]))
        init(self, *args, **kwargs)

    return wrapper
