"""`itr data verify|show SHARDS`: check shards, or show what they contain."""

from __future__ import annotations

from collections.abc import Callable

from itr.commands.parsing import run_function
from itr.data.inspecting.show import show
from itr.data.inspecting.verify import verify

ACTIONS: dict[str, Callable[..., None]] = {"verify": verify, "show": show}


def main(arguments: list[str]) -> None:
    """Parse the command line and run one action."""
    run_function(arguments, ACTIONS, "action", "Check shards, or show what they contain.", positional="shards")
