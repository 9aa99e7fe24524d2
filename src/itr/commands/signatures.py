"""The arguments of functions and classes, read from their source without importing what they need."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import cache, reduce
from importlib.util import find_spec
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any, Literal

PACKAGE = Path(__file__).parents[1]
PLAIN = {"str": str, "int": int, "float": float, "bool": bool, "Path": Path}
EMPTY: Any = Parameter.empty


@cache
def parameters(path: Path, name: str) -> dict[str, bool]:
    """The arguments of a function, a class or a dataclass, and whether each is required.

    Args:
        path: the source file.
        name: of the function or class; empty dictionary if the file does not define it.
    """
    node = _definition(path, name)
    return {} if node is None else {p.name: p.default is EMPTY for p in _parameters(node, path)}


def outline(path: Path, name: str, inlined: str = "") -> Callable[..., None]:
    """A function with the arguments and the docstring of another one, or of a class, to build a parser from.

    A parser of it accepts what the parser of the function itself accepts. Types that are neither built in nor literals
    become Any.

    Args:
        path: the source file.
        name: of the function or class.
        inlined: the annotation of an argument that stands for the arguments of a dataclass, which replace it.
    """
    node = _definition(path, name)
    assert node is not None
    found, text = list(_parameters(node, path)), ast.get_docstring(node) or ""
    for argument in [a for a in found if inlined and a.annotation == inlined]:
        home = _home(inlined, path)
        shared = _definition(home, inlined)
        assert shared is not None
        found.remove(argument)
        found = sorted([*_parameters(shared, home), *found], key=lambda p: p.default is not EMPTY)
        text += "\n" + (ast.get_docstring(shared) or "").partition("\nAttributes:\n")[2]

    return _function(name, text, found)


def typed_outline(path: Path, name: str) -> Callable[..., None]:
    """As `outline`, with only those optional arguments whose types are built in or literals."""
    node = _definition(path, name)
    typed = [] if node is None else [p for p in _parameters(node, path) if p.annotation not in (Any, EMPTY)]
    return _function(name, "", [p for p in typed if p.default is not EMPTY and not isinstance(p.annotation, str)])


def _function(name: str, text: str, arguments: list[Parameter]) -> Callable[..., None]:
    def outlined(**_: Any) -> None:
        """Replaced below."""

    signature = Signature([argument.replace(kind=Parameter.KEYWORD_ONLY) for argument in arguments])
    outlined.__name__, outlined.__doc__ = name, text
    outlined.__signature__ = signature  # type: ignore[attr-defined]
    return outlined


def trainer_source() -> tuple[Path, str]:
    """The source file of Lightning's Trainer and its name; the file may not exist."""
    spec = find_spec("lightning")
    return Path((spec.origin if spec else None) or "").parent / "pytorch" / "trainer" / "trainer.py", "Trainer"


def trainer_parameters() -> dict[str, bool]:
    """The arguments of Lightning's Trainer; empty if its source is not where it is expected."""
    path, name = trainer_source()
    return parameters(path, name) if path.is_file() else {}


@cache
def _statements(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_text(encoding="utf-8")).body


def _definition(path: Path, name: str) -> ast.FunctionDef | ast.ClassDef | None:
    for node in _statements(path):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
    return None


def _parameters(node: ast.FunctionDef | ast.ClassDef, path: Path) -> Iterator[Parameter]:
    if isinstance(node, ast.ClassDef):
        own = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
        if own is None:
            yield from (_parameter(ast.unparse(n.target), n.annotation, n.value, path) for n in fields)
            return
        node = own
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    without: list[ast.expr | None] = [None] * (len(positional) - len(given.defaults))
    pairs = [*zip(positional, [*without, *given.defaults], strict=True)]
    for argument, default in [*pairs, *zip(given.kwonlyargs, given.kw_defaults, strict=True)]:
        if argument.arg != "self":
            yield _parameter(argument.arg, argument.annotation, default, path)


def _parameter(name: str, annotation: ast.expr | None, default: ast.expr | None, path: Path) -> Parameter:
    value = EMPTY if default is None else _value(default, path)
    return Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=value, annotation=_type(annotation, path))


def _value(node: ast.expr, path: Path) -> Any:
    """What a default is, written out or as the name of a constant; None if it is an object."""
    if isinstance(node, ast.Name):
        found = _assigned(node.id, path)
        return None if found is None else _value(*found)
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _type(node: ast.expr | None, path: Path) -> Any:
    """The type that an annotation names; the name itself if it is a class, and Any if it is something else."""
    match node:
        case ast.Constant(value=None):
            return None
        case ast.Name(id=name) if name in PLAIN:
            return PLAIN[name]
        case ast.Name(id=name):
            return _alias(name, path)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _union(_type(left, path), _type(right, path))
        case ast.Subscript(value=ast.Name(id="Optional"), slice=of):
            return _union(_type(of, path), None)
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=parts)):
            return reduce(_union, (_type(part, path) for part in parts))
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            values = choices.elts if isinstance(choices, ast.Tuple) else [choices]
            return Literal[tuple(ast.literal_eval(value) for value in values)]
        case ast.Subscript(value=ast.Name(id="list"), slice=of) if not isinstance(inner := _type(of, path), str):
            return list[inner]  # type: ignore[valid-type]
    return Any


def _union(one: Any, other: Any) -> Any:
    return Any if any(part is Any or isinstance(part, str) for part in (one, other)) else one | other


def _alias(name: str, path: Path) -> Any:
    """What a name of a file stands for, if the file that defines it says `NAME = Literal[...]` or the like."""
    if (found := _assigned(name, path)) is not None:
        return _type(*found)
    return name if _definition(_home(name, path), name) is not None else Any


def _assigned(name: str, path: Path) -> tuple[ast.expr, Path] | None:
    """The value that a file, or the one that it imports the name from, assigns to a name; and that file."""
    home = _home(name, path)
    for node in _statements(home):
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return node.value, home
    return None


def _home(name: str, path: Path) -> Path:
    """The file of the package in which a name is defined that another one imports, or the same file."""
    for node in _statements(path):
        names = [alias.asname or alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
        if name in names and isinstance(node, ast.ImportFrom) and (node.module or "").startswith("itr."):
            place = PACKAGE.joinpath(*(node.module or "").split(".")[1:])
            return _home(name, place / "__init__.py" if place.is_dir() else place.with_suffix(".py"))
    return path
