"""The arguments of functions and classes, read from their source without importing what they need."""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


@cache
def parameters(path: Path, name: str) -> dict[str, bool]:
    """The arguments of a function, a class or a dataclass, and whether each is required.

    Args:
        path: the source file.
        name: of the function or class; empty dictionary if the file does not define it.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _arguments(node.args)
        if isinstance(node, ast.ClassDef) and node.name == name:
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
                    return _arguments(inner.args)
            fields = [inner for inner in node.body if isinstance(inner, ast.AnnAssign)]
            return {inner.target.id: inner.value is None for inner in fields if isinstance(inner.target, ast.Name)}
    return {}


def _arguments(given: ast.arguments) -> dict[str, bool]:
    positional = [*given.posonlyargs, *given.args]
    required = len(positional) - len(given.defaults)
    found = {argument.arg: number < required for number, argument in enumerate(positional)}
    found |= {a.arg: default is None for a, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)}
    found.pop("self", None)
    return found


def trainer_parameters() -> dict[str, bool]:
    """The arguments of Lightning's Trainer; empty if its source is not where it is expected."""
    spec = find_spec("lightning")
    path = Path((spec.origin if spec else None) or "").parent / "pytorch" / "trainer" / "trainer.py"
    return parameters(path, "Trainer") if path.is_file() else {}
