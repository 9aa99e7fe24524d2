"""Importing modules that the user names on the command line, in a config or in ITR_IMPORT; nothing else does."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import pkgutil
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from itr.errors import UserError

DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


def add_current_folder(names: Iterable[str]) -> None:
    """Make the current folder importable if the user names a module in it, such as `my_package.MyBackbone`.

    `python -m itr` always searches the current folder, the command `itr` does not. The folder is added only if it
    contains a named module, which keeps a command safe in a folder with untrusted files: an optional dependency that
    is not installed is not found there. The folder is searched last, so its files cannot replace installed modules.
    """
    with suppress(FileNotFoundError):  # the current folder has been deleted
        here = Path.cwd()
        known = {os.path.abspath(folder) for folder in sys.path}
        if str(here) not in known and any(_is_module_in(here, name) for name in names):
            sys.path.append(str(here))
            importlib.invalidate_caches()


def _is_module_in(folder: Path, name: str) -> bool:
    top, *rest = name.split(".")
    inside = [f"{top}/{part}" for part in rest[:1]]  # a package may lack __init__.py
    parts = [f"{part}{end}" for part in (top, *inside) for end in (".py", "/__init__.py")]
    return any((folder / part).is_file() for part in parts) and not _is_installed(top)


def _is_installed(module: str) -> bool:
    if module in sys.modules:
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # a module without a specification
        return True


def import_module_of_user(name: str, named_by: str) -> ModuleType:
    """Import a module that the user names.

    Args:
        name: its dotted name.
        named_by: where the user named it, for messages: "the command line", a config file.

    Raises:
        UserError: the module does not exist, or importing it fails.
    """
    add_current_folder([name])
    try:
        return importlib.import_module(name)
    except Exception as error:  # the module's own code runs, and may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            near = difflib.get_close_matches(error.name, _modules_of_user(error.name), n=1)
            raise UserError(
                f"the module {error.name}, which {named_by} names, does not exist. "
                f"{_suggestion(near)}Run the command in the folder that contains it, or add that folder to PYTHONPATH"
            ) from None
        text = str(error).strip()
        raise UserError(
            f"could not import {name}, which {named_by} names: {type(error).__name__}{': ' * bool(text)}{text}"
        ) from error


def import_class(path: str, base: type, named_by: str, readme: str) -> type[Any]:
    """Import the class that the user names by its dotted path, and check that it extends `base`.

    Raises:
        UserError: the module or the class does not exist, or the class does not extend `base`.
    """
    module_name, _, name = path.rpartition(".")
    module = import_module_of_user(module_name, named_by)
    found = getattr(module, name, None)
    fitting = [n for n, value in vars(module).items() if _extends(value, base) and value is not base]
    if found is None:
        near = difflib.get_close_matches(name, fitting or vars(module), n=1, cutoff=0.5) or fitting[:1]
        raise UserError(
            f"{module_name} has no {name}. {_suggestion([f'{module_name}.{n}' for n in near])}".rstrip(" .")
        )
    if not _extends(found, base) or found is base:
        others = f" {module_name} has {', '.join(fitting)}." if fitting else ""
        raise UserError(
            f"{path} does not extend {base.__module__.removesuffix('.base')}.{base.__name__}.{others} {readme} shows "
            "how to write such a class"
        )
    missing = getattr(found, "__abstractmethods__", None)
    if missing:
        raise UserError(f"{path} does not define {', '.join(sorted(missing))}; {readme} shows how")
    return found  # type: ignore[no-any-return]


def _extends(value: Any, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base)


def _modules_of_user(name: str) -> list[str]:
    """Modules in the user's folders, without installed ones: candidates for the meaning of a mistyped name."""
    parent, _, _ = name.rpartition(".")
    if parent:
        inside = getattr(sys.modules.get(parent), "__path__", [])
        return [f"{parent}.{found.name}" for found in pkgutil.iter_modules(inside)]
    folders = [os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return [found.name for found in pkgutil.iter_modules([folder for folder in folders if folder])]


def _suggestion(near: list[str]) -> str:
    return f"Did you mean {near[0]}? " if near else ""
