"""Private names of jsonargparse, and of argparse, which it extends."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def option_names(parser: ArgumentParser) -> list[str]:
    """Names of all options of a parser, dotted and without leading dashes.

    Missing: a public list of what a parser accepts.
    """
    found: dict[str, None] = {}
    for action in parser._actions:
        for option in getattr(action, "option_strings", []):
            found[option.lstrip("-").rstrip("+")] = None
    return list(found)


def option_help(parser: ArgumentParser, option: str) -> str:
    """The help of an option, given with its dashes; empty if it has none.

    Missing: a public way to look an option up.
    """
    return str(getattr(parser._option_string_actions.get(option), "help", None) or "")


def subcommands(parser: ArgumentParser) -> tuple[str, dict[str, ArgumentParser]]:
    """The key under which a parser stores its subcommand, and the parsers by subcommand; empty if it has none.

    Missing: public access to the subcommands that `add_subcommands` has added.
    """
    action = parser._subcommands_action
    return ("", {}) if action is None else (action.dest, dict(action.choices))
