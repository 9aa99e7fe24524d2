"""A resumed run keeps the model settings of its checkpoint: settings that differ are reported or refused."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from itr.component import PARTS
from itr.errors import UserError

log = logging.getLogger(__name__)


def check_resumed(wanted: Mapping[str, Any], saved: Mapping[str, Any], arguments: Sequence[str], path: str) -> None:
    """Compare the settings of a run with those of the checkpoint that it resumes from.

    Args:
        wanted: model settings of config and command line, as plain types.
        saved: those of the checkpoint, which apply.
        arguments: the command line.
        path: the checkpoint, for messages.

    Raises:
        UserError: an option on the command line differs from the checkpoint.
    """
    options = _options(arguments)
    for key, (value, kept) in differences(wanted, saved).items():
        if key in options or any(key.startswith(f"{name}.") for name, whole in options.items() if whole):
            raise UserError(
                f"--{key} {value} differs from {kept}, with which {path} was trained. A resumed run keeps its "
                "settings: remove the option, or start a new run in another folder"
            )
        log.info("%s is %s, as in %s; the config's %s is not used", key, kept, path, value)


def _options(arguments: Sequence[str]) -> dict[str, bool]:
    """Model options of the command line by name, and whether a file or a dictionary gives all settings below them."""
    found = {}
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, value = argument.partition("=")
        if name.startswith("--model"):
            value = value if equals else following
            found[_name(name.removeprefix("--"))] = value.startswith("{") or value.endswith((".yaml", ".yml", ".json"))
    return found


def differences(wanted: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings by name that are set on both sides and differ, with both values.

    The sources of a model (names of towers, their configs, a first stage) are given in one form and stored in another,
    with null in the first place. So only settings that both sides set are compared.
    """
    found = {}
    for part in PARTS:
        one, two = _flat(wanted.get(part), f"model.{part}"), _flat(saved.get(part), f"model.{part}")
        for key in one.keys() & two.keys():
            if one[key] != two[key] and None not in (one[key], two[key]):
                found[_name(key)] = (one[key], two[key])
    return dict(sorted(found.items()))


def _flat(value: Any, key: str) -> dict[str, Any]:
    """The leaves of nested dictionaries and lists by dotted name, with the length of lists of components."""
    if isinstance(value, dict) and key.endswith("_config"):
        return {}
    if isinstance(value, dict):
        return {k: leaf for name, item in value.items() for k, leaf in _flat(item, f"{key}.{name}").items()}
    if key.endswith(".class_path"):
        return {key: value.rpartition(".")[2]}  # a class has several paths
    if key == "model.methods":
        named = [item["class_path"].rpartition(".")[2] for item in value or []]
        leaves = {k: leaf for at, item in enumerate(value or []) for k, leaf in _flat(item, f"{key}.{at}").items()}
        return {key: named, **leaves}
    return {key: value}


def _name(key: str) -> str:
    """The name of a setting as users give it: without what jsonargparse nests it in and without list indices."""
    parts = [part for part in key.rstrip("+").split(".") if part not in ("init_args", "class_path")]
    return ".".join(part for part in parts if not part.isdigit())
