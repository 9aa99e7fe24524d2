"""Objects that store how they were built, so that a checkpoint can build them again."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import os
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from itr.errors import UserError
from itr.importing import import_module_of_user
from itr.private_api.lightning import INSTANTIATOR_KEY

PARTS = ("backbone", "objective", "methods", "optimizer")
INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"  # builds a model from its description
IMPORTS = "ITR_IMPORT"  # environment: modules with user-defined components, separated by commas


class Component:
    """Base of everything that a config selects by class path: backbones, objectives, methods.

    The arguments of the outermost `__init__` are kept. `describe` returns them as plain types in the form that
    jsonargparse reads; `RetrievalModule` writes that into a checkpoint.

    Attributes:
        init_args: those arguments.
        fetched: arguments that name something to download or to read; `describe` gives None for them.
    """

    init_args: dict[str, Any]
    fetched: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = _remember(cls.__init__)  # type: ignore[method-assign]

    def describe(self) -> dict[str, Any]:
        """Class path and arguments from which an equal component (without its weights) is built."""
        return {"class_path": class_path(type(self)), "init_args": plain(getattr(self, "init_args", {}))}


def check_description(description: Any, where: str) -> dict[str, Any]:
    """Check the description of a checkpoint's model before anything that it names is imported.

    Jsonargparse imports whatever module a class path names, and so runs its code, before it checks whether the class
    is of the right kind. So a file may only name components that are already known: ours, and those of modules that
    the user's program or config has imported. Nor may it name anything to download or to read from elsewhere, such as
    a pretrained tower: our checkpoints contain all of it.

    Args:
        description: the value of `hyper_parameters`, as `RetrievalModule.describe` writes it.
        where: the file, for messages.

    Raises:
        UserError: it is malformed, or names something else; the message says what to type.
    """
    if not isinstance(description, dict) or not set(PARTS) <= description.keys() <= {*PARTS, INSTANTIATOR_KEY}:
        raise UserError(f"{where} is not an itr checkpoint: it does not describe its {', '.join(PARTS)}")
    if description.get(INSTANTIATOR_KEY) != INSTANTIATOR:
        raise UserError(f"{where} is not an itr checkpoint: its model is not built by {INSTANTIATOR}")
    backbone, objective, methods = (description[part] for part in PARTS[:3])
    if not isinstance(description["optimizer"], dict):
        raise UserError(f"{where} is not an itr checkpoint: its optimizer is {str(description['optimizer'])[:80]}")
    for name in filter(None, os.environ.get(IMPORTS, "").split(",")):
        import_module_of_user(name.strip(), IMPORTS)
    import_module(INSTANTIATOR.rpartition(".")[0])
    known = {class_path(cls): cls for cls in subclasses(Component)}
    for part in (backbone, objective, *(methods if isinstance(methods, list) else [methods])):
        if not isinstance(part, dict) or set(part) - {"init_args"} != {"class_path"}:
            raise UserError(f"{where} is not an itr checkpoint: a part of its model is {str(part)[:80]}")
    for part in _described(description):
        cls = known.get(str(part["class_path"]))
        if cls is None:
            raise UserError(_unknown_class(str(part["class_path"])[:200], where))
        _check_arguments(part.get("init_args"), cls, where)
    return description


def _unknown_class(path: str, where: str) -> str:
    """What to do about a checkpoint that names a class which nothing has imported."""
    beside = Path(where).parent.parent / "config.yaml"  # of the run folder that the checkpoint is in
    config = "FILE, the config that names it"
    with contextlib.suppress(OSError, ValueError):
        if path.rpartition(".")[2] in beside.read_text(encoding="utf-8"):
            config = shlex.quote(str(beside))
    return (
        f"{where} names the class {path!r}, which is not part of itr. A checkpoint alone may not import code. If you "
        f"trust this class, add --config {config}; a Python program imports its module first"
    )


def _check_arguments(arguments: Any, cls: type[Component], where: str) -> None:
    if not isinstance(arguments, dict):
        raise UserError(f"{where} is not an itr checkpoint: the arguments of {cls.__name__} are {str(arguments)[:80]}")
    for name in cls.fetched:
        if arguments.get(name) is not None:
            raise UserError(
                f"{where} names a {name} to download or read, {str(arguments[name])[:200]!r}; our checkpoints hold it"
            )


def subclasses(cls: type[Component]) -> Iterator[type[Component]]:
    """All subclasses of a class that have been imported, at any depth."""
    for subclass in cls.__subclasses__():
        yield subclass
        yield from subclasses(subclass)


def _described(value: Any) -> Iterator[dict[str, Any]]:
    """All dictionaries with a class path inside `value`."""
    if isinstance(value, dict):
        if "class_path" in value:
            yield value
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _described(item)


def class_path(cls: type) -> str:
    """The dotted path of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def plain(value: Any) -> Any:
    """`value` in types that YAML and a `weights_only` checkpoint can store."""
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
