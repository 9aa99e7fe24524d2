"""The layers of the package: what each subpackage may import, and how many files it may contain."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "itr"
# From bottom to top: a module imports only from its own layer and from earlier layers.
ROOMS = """
errors moved private_api files importing component commands types distributed losses objectives weights backbones images
teachers data.shards data.tables data.raw data.scenes data.loading data.features data.towers data.model_fields
data.datamodule data.sources data.preparing data.inspecting training methods evaluation state retriever module
checkpoints embedding passes protocols interop runs report.content report.page report.make early cli __main__
"""
LAYERS = ROOMS.split()
MOST_LINES = 250
MOST_FILES = 12  # in one folder, not counting `__init__.py`


def modules() -> dict[str, Path]:
    """Every module of the package by its name without `itr.`; a package has the name of its folder."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports, also inside functions and for type checkers."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "itr":
            base = node.module.removeprefix("itr").lstrip(".")
            for name in node.names:
                inner = f"{base}.{name.name}".lstrip(".")
                found.add(inner if inner in known else base)
        elif isinstance(node, ast.Import):
            found |= {name.name.removeprefix("itr.") for name in node.names if name.name.startswith("itr.")}
    return found


def layer(module: str) -> int | None:
    """The index of the layer that a module belongs to; None for a package that only contains others."""
    return next((i for i, room in enumerate(LAYERS) if f"{module}.".startswith(f"{room}.")), None)


def test_every_module_belongs_to_a_layer() -> None:
    rooms_of_rooms = {"", "data", "report"}
    assert {name for name in modules() if layer(name) is None} <= rooms_of_rooms


def test_no_module_imports_from_a_higher_layer() -> None:
    known = modules()
    upward = [
        f"{name} imports {other}"
        for name, path in known.items()
        for other in imports(path, known)
        if (mine := layer(name)) is not None and (theirs := layer(other)) is not None and theirs > mine
    ]
    assert upward == []


def test_there_are_no_circular_imports() -> None:
    known = modules()
    waiting = {name: imports(path, known) - {name} for name, path in known.items()}
    while free := {name for name, needs in waiting.items() if not needs & waiting.keys()}:
        waiting = {name: needs for name, needs in waiting.items() if name not in free}
    assert waiting == {}


def test_packages_have_few_files() -> None:
    files = defaultdict(list)
    for path in modules().values():
        if path.name != "__init__.py":
            files[path.parent.relative_to(PACKAGE)].append(path.name)
    assert {str(room): sorted(names) for room, names in files.items() if len(names) > MOST_FILES} == {}


def test_files_are_short_enough_to_read() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}
