"""What configs and options set, as far as it is known without the parser."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from itr.commands.configs import config_folder
from itr.commands.order import Option
from itr.files.documents import parse_yaml, read_yaml_document


def settings_of(given: Iterable[Option]) -> dict[str, Any]:
    """All settings, nested; later ones win. Options that append to a list are omitted."""
    found: dict[str, Any] = {}
    for option in given:
        if option.key == "config":
            _merge(found, _expanded(read_yaml_document(Path(option.value)), Path(option.value).parent))
        elif option.key and not option.key.endswith("+"):
            *groups, name = option.key.split(".")
            value: dict[str, Any] = {name: _content(option.value, Path()) if not groups else option.value}
            for group in reversed(groups):
                value = {group: value}
            _merge(found, value)
    return found


def texts_in(settings: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every text among settings, with its name as an option has it: without `init_args` and places in lists."""
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            yield from texts_in(value, prefix if key == "init_args" else f"{prefix}{'.' * bool(prefix)}{key}")
    elif isinstance(settings, list):
        for item in settings:
            yield from texts_in(item, prefix)
    elif isinstance(settings, str):
        yield prefix, settings


def is_true(value: Any) -> bool:
    """Whether a setting that may still be a text is true."""
    return str(value).lower() == "true"


def _expanded(content: Any, folder: Path) -> dict[str, Any]:
    """The content of a config with the files that its parts name."""
    return {key: _content(value, folder) for key, value in content.items()} if isinstance(content, dict) else {}


def _content(part: Any, folder: Path) -> Any:
    """A part of a config, such as `data`, which may be written out as text or name a file."""
    if not isinstance(part, str):
        return part
    if part.startswith("{"):
        with suppress(yaml.YAMLError, ValueError, RecursionError):  # the parser says what is wrong with it
            return parse_yaml(part)
    files = [base / part for base in (folder, Path(), config_folder())] if part.endswith((".yaml", ".yml")) else []
    file = next((path for path in files if path.is_file()), None)
    return part if file is None else read_yaml_document(file)


def _merge(found: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(found.get(key), dict):
            _merge(found[key], value)
        else:
            found[key] = value
