"""`itr prepare SOURCE`: pictures and captions to shards."""

from __future__ import annotations

from collections.abc import Callable

from itr.data.sources.scenes import prepare_scenes
from itr.data.sources.table import prepare_table
from itr.parsing import run_function

SOURCES: dict[str, Callable[..., None]] = {"table": prepare_table, "scenes": prepare_scenes}


def main(arguments: list[str]) -> None:
    """Parse the command line and run one source."""
    run_function(arguments, SOURCES, "source", "Turn pictures and captions into shards.")
