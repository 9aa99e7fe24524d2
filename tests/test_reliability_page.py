"""The table of faults in docs/reliability.md names existing tests, and covers every fault."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_YET_COVERED = {56, 57, 58}  # search and serving


def table() -> dict[int, list[str]]:
    """The rows of the table by the number of the fault."""
    found: dict[int, list[str]] = {}
    for line in (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").splitlines():
        if numbered := re.match(r"\| (\d+) \|", line):
            found.setdefault(int(numbered[1]), []).append(line)
    return found


def test_every_fault_is_listed_with_a_test():
    lines = table()
    assert set(lines) == set(range(1, 63))
    without = {number for number, found in lines.items() if not all("`tests/" in line for line in found)}
    assert without == NOT_YET_COVERED


def test_the_listed_tests_exist():
    for line in (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").splitlines():
        file = ""
        for path, name in re.findall(r"`(tests/[\w/]+\.py)?(?:::(\w+))?`", line):
            file = path or file
            if file:
                source = (ROOT / file).read_text(encoding="utf-8")
                assert not name or f"def {name}(" in source, f"{file}::{name} in: {line[:80]}"
