"""Config files: those shipped with the package, found by name, and how a part of a config replaces another."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from importlib.resources import files
from inspect import signature
from pathlib import Path
from typing import Any

import yaml

from itr.component import Component, plain, subclasses
from itr.errors import UserError

MADE_WITH = "# made with "  # begins the line of a run's config.yaml that names the configs it was made from
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
    """The same command line with the paths of shipped configs: `--config demo.yaml`, `--data=data/coco.yaml`."""

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

    return list(resolved())


def _resolve(option: str, value: str) -> list[str]:
    """The values that replace the value of an option, in this order."""
    part = option.startswith(("--model", "--data")) and value.endswith(".yaml")
    config = option in ("--config", "-c")
    if not (part or config):
        return [value]
    path = find_config(value)
    content = _read_yaml(path)
    return [*(_defaults(content) if option in WHOLE else []), path]


def _read_yaml(path: str) -> Any:
    """The contents of a config; UserError with file and line if it is not valid YAML."""
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}," if error.problem_mark else ""
        raise UserError(f"{path}{line} is not valid YAML: {error.problem or error.context}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"could not read {path} as YAML: {error}") from None


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
