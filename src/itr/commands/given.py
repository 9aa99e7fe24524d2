"""What configs and options set, as far as it is known without the parser."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from itr.commands.configs import config_folder
from itr.commands.order import Option
from itr.files.documents import read_yaml_document


def settings_of(given: Iterable[Option]) -> dict[str, Any]:
    """All settings, nested; later ones win. Options that append to a list are omitted."""
    found: dict[str, Any] = {}
    for option in given:
        if option.key == "config":
            _merge(found, _expanded(read_yaml_document(Path(option.value)), Path(option.value).parent))
        elif option.key == "data" and option.value.endswith(".yaml"):
            _merge(found, {"data": read_yaml_document(Path(option.value))})
        elif option.key and not option.key.endswith("+"):
            *groups, name = option.key.split(".")
            value: dict[str, Any] = {name: option.value}
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
    """The content of a config with the file that its `data` names."""
    if not isinstance(content, dict):
        return {}
    data = content.get("data")
    if isinstance(data, str):
        files = [base / data for base in (folder, Path(), config_folder())]
        file = next((path for path in files if path.is_file()), None)
        content = {**content, "data": read_yaml_document(file) if file else {}}
    return dict(content)


def _merge(found: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(found.get(key), dict):
            _merge(found[key], value)
        else:
            found[key] = value
