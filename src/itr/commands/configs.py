"""Config files: shipped configs by name, parts given as options, and the user-defined classes that a config names."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from contextlib import suppress
from importlib.resources import files
from inspect import signature
from pathlib import Path
from typing import Any

import yaml

from itr.commands.order import files_first
from itr.component import Component, plain, subclasses
from itr.errors import UserError
from itr.files.documents import parse_yaml, read_yaml_document
from itr.importing import DOTTED, add_current_folder, import_module_of_user

MADE_WITH = "# made with "  # begins the line of a run's config.yaml that names the configs it was made from
CLASS_KEYS = ("class_path", "backbone", "objective", "methods", "methods+")  # where a config names a class of a model
WHOLE = ("--model.backbone", "--model.objective")  # options whose file replaces what earlier configs say


def config_folder() -> Path:
    """The folder of the shipped configs: inside the installed package, or at the top of the repository."""
    packaged = Path(str(files("itr"))) / "configs"
    return packaged if packaged.is_dir() else Path(str(files("itr"))).parents[1] / "configs"


def find_config(name: str) -> str:
    """The path of a config file, given by path or by its name among the shipped configs.

    Raises:
        UserError: neither exists; the message lists similar names.
    """
    if Path(name).is_file():
        return name
    folder = config_folder()
    for candidate in (folder / name, folder / f"{name}.yaml"):
        if candidate.is_file():
            return str(candidate)
    shipped = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.yaml"))]
    near = difflib.get_close_matches(name, shipped, n=3, cutoff=0.5) or [path for path in shipped if "/" not in path]
    raise UserError(
        f"the config file {name!r} does not exist, neither here nor among the shipped ones; nearest: {', '.join(near)}"
    )


def made_with(path: str) -> str:
    """The names of the configs that a run's `config.yaml` was made from; for any other config its own name."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    found = next((line for line in lines if line.startswith(MADE_WITH)), None)
    return Path(path).name if found is None else found.removeprefix(MADE_WITH)


def resolve_configs(arguments: list[str]) -> list[str]:
    """The same command line with the paths of shipped configs: `--config demo.yaml`, `--data=data/coco.yaml`.

    Options win over files wherever they are given, see `files_first`.

    If an option or a config names a class of the current folder, that folder becomes importable.
    """
    add_current_folder(name for argument in arguments for name in dotted_names(_value(argument)))

    def resolved() -> Iterator[str]:
        option = ""
        for argument in arguments:
            name, equals, value = argument.partition("=")
            if argument.startswith("-") and equals:
                yield from (f"{name}={given}" for given in _resolve(name, value))
            else:
                *before, last = _resolve(option, argument)
                yield from (part for given in before for part in (given, option))
                yield last
            option = argument

    return files_first(list(resolved()))


def _value(argument: str) -> Any:
    """What an argument of the command line holds after its name."""
    text = argument.partition("=")[2] if argument.startswith("-") else argument
    if text.startswith(("{", "[")):
        with suppress(yaml.YAMLError, ValueError, RecursionError):  # the parser says what is wrong with it
            return parse_yaml(text)
    return text


def _resolve(option: str, value: str) -> list[str]:
    """The values that replace the value of an option, in this order."""
    part = option.startswith(("--model", "--data")) and value.endswith(".yaml")
    config = option in ("--config", "-c")
    if not (part or config):
        return [value]
    path = find_config(value)
    content = read_yaml_document(Path(path))
    add_current_folder(dotted_names(content))
    return [*(_defaults(content) if option in WHOLE else []), path]


def _defaults(part: Any) -> list[str]:
    """All settings of the class that a part of a config selects, with their defaults.

    Given before the part, they make it complete: otherwise the parser would merge it with the settings of an earlier
    config for the same class.
    """
    name = str(part.get("class_path") if isinstance(part, dict) else None)
    known = {cls.__name__: cls for cls in subclasses(Component)}
    if (cls := known.get(name.rpartition(".")[2])) is None:
        return []
    settings = {n: plain(p.default) for n, p in signature(cls).parameters.items() if p.default is not p.empty}
    return [json.dumps({"class_path": name, "init_args": settings})]


def import_config_classes(name: str) -> None:
    """Import the modules of the user-defined components that a config names, so that a checkpoint may name them too.

    Args:
        name: a config file, or the name of a shipped one.

    Raises:
        UserError: there is no such config, or a module cannot be imported.
    """
    path = find_config(name)
    content = read_yaml_document(Path(path))
    add_current_folder(dotted_names(content))
    model = content.get("model") if isinstance(content, dict) else None
    for found in dict.fromkeys(dotted_names(model, CLASS_KEYS)):
        import_module_of_user(found.rpartition(".")[0], path)


def dotted_names(value: Any, keys: tuple[str, ...] | None = None, key: str = "") -> Iterator[str]:
    """All dotted names in a config's content, such as `my_package.MyBackbone`; only those of some keys, if given."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from dotted_names(item, keys, str(name))
    elif isinstance(value, list):
        for item in value:
            yield from dotted_names(item, keys, key)
    elif isinstance(value, str) and (keys is None or key in keys) and DOTTED.fullmatch(value):
        yield value
