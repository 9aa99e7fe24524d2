"""Reading YAML and JSON files that may be damaged or crafted, in bounded time and memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from itr.errors import UserError

MOST_YAML = 300_000  # bytes; the config of a run has some thousands, and the parser reads 100,000 in a second
MOST_JSON = 50_000_000
MOST_VALUES = 100_000  # in a YAML document, counting what an alias stands for each time
DEEPEST = 50  # lists and dictionaries within one another


def read_yaml_document(path: Path) -> Any:
    """The contents of a YAML file.

    Aliases let a short text stand for a tree that no memory can hold, or for one that contains itself, and any code
    that walks over it would not end; so the values are counted before they are built.

    Raises:
        UserError: it is not valid YAML (the message has the line), too large, or could not be read.
    """
    try:
        return parse_yaml(_text(path, MOST_YAML))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}," if error.problem_mark else ""
        raise UserError(f"{path}{line} is not valid YAML: {error.problem or error.context}") from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"could not read {path} as YAML: {_reason(error)}") from None


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        YAMLError: it is not valid.
        ValueError: it stands for more values, or for deeper ones, than a config has.
        RecursionError: it is nested even deeper.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        values, depth = _measure(node, {}, set())
        if values > MOST_VALUES or depth > DEEPEST:
            raise ValueError(
                f"it stands for more than {MOST_VALUES:,} values or for lists more than {DEEPEST} deep, as no config "
                "does; look for aliases (*name) that repeat one another"
            )
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _measure(node: Any, known: dict[int, tuple[int, int]], open_nodes: set[int]) -> tuple[int, int]:
    """The number of values that a node stands for, and its depth."""
    if id(node) in known:
        return known[id(node)]
    if id(node) in open_nodes:
        raise ValueError("a part of it contains itself by an alias")
    open_nodes.add(id(node))
    children = node.value if isinstance(node, yaml.CollectionNode) else []
    inner = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
    measured = [_measure(child, known, open_nodes) for child in inner]
    open_nodes.remove(id(node))
    found = 1 + sum(values for values, _ in measured), 1 + max((depth for _, depth in measured), default=0)
    known[id(node)] = found
    return found


def read_json_document(path: Path) -> Any:
    """The contents of a JSON file.

    Raises:
        UserError: it is not valid JSON, too large, or could not be read.
    """
    try:
        return json.loads(_text(path, MOST_JSON))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"could not read {path} as JSON: {_reason(error)}") from None


def _text(path: Path, most: int) -> str:
    if not path.is_file():  # nor a pipe or a device, which may have no end
        raise ValueError("it is not a file")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return data.decode("utf-8")


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
