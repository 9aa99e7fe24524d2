"""`itr prepare SOURCE`: pictures and captions to shards."""

from __future__ import annotations

from collections.abc import Callable

from itr.data.sources.scenes import prepare_scenes
from itr.data.sources.table import prepare_table
from itr.parsing import FriendlyParser

SOURCES: dict[str, Callable[..., None]] = {"table": prepare_table, "scenes": prepare_scenes}


def main(arguments: list[str]) -> None:
    """Parse the command line and run one source."""
    parser = FriendlyParser(prog="itr", description="Turn pictures and captions into shards.")
    verbs = parser.add_subcommands(required=True, metavar="VERB")
    prepare = FriendlyParser(description="Turn pictures and captions into shards.")
    verbs.add_subcommand("prepare", prepare)
    sources = prepare.add_subcommands(required=True, dest="source", metavar="SOURCE")
    for name, function in SOURCES.items():
        source = FriendlyParser(description=(function.__doc__ or "").strip().splitlines()[0])
        source.add_function_arguments(function)
        sources.add_subcommand(name, source, help=(function.__doc__ or "").strip().splitlines()[0])
    config = parser.parse_args(arguments)
    chosen = config.prepare
    SOURCES[chosen.source](**chosen[chosen.source].as_dict())
