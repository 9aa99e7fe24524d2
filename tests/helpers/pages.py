"""What the pages for newcomers show: classes to save in a file, and commands to run."""

from __future__ import annotations

import re
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "src" / "itr"


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page of the package, such as `methods/README.md`."""
    return re.findall(rf"```{language}\n(.*?)```", (PACKAGE / page).read_text(encoding="utf-8"), re.DOTALL)


def shown_class(page: str) -> str:
    """The one class that a page shows as a whole file."""
    [source] = blocks(page, "python")
    return source


def commands(page: str) -> list[list[str]]:
    """The command lines of `itr` on a page, without the word `itr`."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [line.split()[1:] for line in lines if line.startswith("itr ")]
