"""`itr prepare SOURCE`: images and captions to shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from inspect import signature

from itr.commands.parsing import parse_function
from itr.data.preparing.writing import Writing, write_shards
from itr.data.raw.entries import RawData
from itr.data.sources.camoit import read_camoit
from itr.data.sources.coco import read_coco
from itr.data.sources.flickr30k import read_flickr30k
from itr.data.sources.mag import read_mag
from itr.data.sources.scenes import prepare_scenes
from itr.data.sources.table import read_table

# A source reads what lies on the disk, and the writing is common to all. An argument of a reader that bears the name of
# a common one, such as `seed`, gets the same value.
SOURCES: dict[str, Callable[..., RawData]] = {
    "table": read_table,
    "flickr30k": read_flickr30k,
    "coco": read_coco,
    "camoit": read_camoit,
    "mag": read_mag,
}
# These make their images, and write them themselves.
MADE_UP: dict[str, Callable[..., None]] = {"scenes": prepare_scenes}


def main(arguments: list[str]) -> None:
    """Parse the command line and run one source."""
    common = dict.fromkeys(SOURCES, Writing)
    functions = {**SOURCES, **MADE_UP}
    name, values = parse_function(
        arguments, functions, "source", "Turn images and captions into shards.", common=common
    )
    if name in MADE_UP:
        MADE_UP[name](**values)
        return
    read = SOURCES[name]
    writing = Writing(**{field.name: values[field.name] for field in fields(Writing)})
    write_shards(read(**{parameter: values[parameter] for parameter in signature(read).parameters}), writing)
