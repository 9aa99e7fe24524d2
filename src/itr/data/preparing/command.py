"""`itr prepare SOURCE`: writes the images and captions of a raw data set to shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from inspect import signature

from itr.commands.parsing import parse_function
from itr.data.preparing.writing import Writing, write_shards
from itr.data.sources.base import Source, check_read
from itr.data.sources.camoit import CamoIT
from itr.data.sources.coco import Coco
from itr.data.sources.flickr30k import Flickr30K
from itr.data.sources.mag import Mag
from itr.data.sources.scenes import prepare_scenes
from itr.data.sources.table import Table
from itr.importing import import_class

README = "src/itr/data/sources/README.md"
SOURCES: dict[str, type[Source]] = {
    "table": Table,
    "flickr30k": Flickr30K,
    "coco": Coco,
    "camoit": CamoIT,
    "mag": Mag,
}
# Scenes are drawn, not read: they have exact true matches besides, and options of their own for all of it.
DRAWN: dict[str, Callable[..., None]] = {"scenes": prepare_scenes}
DESCRIPTION = (
    "Write images and captions to shards. SOURCE is one of these names or the class path of your own source, such as "
    f"my_package.MySource ({README} shows one)."
)


def main(arguments: list[str]) -> None:
    """Parse the command line and run one source."""
    sources = {**SOURCES, **named_source(arguments[1:])}
    name, values = parse_function(
        arguments, {**sources, **DRAWN}, "source", DESCRIPTION, common=dict.fromkeys(sources, Writing)
    )
    if name in DRAWN:
        DRAWN[name](**values)
        return
    writing = Writing(**{field.name: values[field.name] for field in fields(Writing)})
    source = sources[name](**{parameter: values[parameter] for parameter in signature(sources[name]).parameters})
    write_shards(check_read(source.read(), name), writing)


def named_source(arguments: list[str]) -> dict[str, type[Source]]:
    """The user-defined source that the command line names by its class path; none if it names a built-in one.

    Raises:
        UserError: there is no such class, or it is not a source.
    """
    path = arguments[0] if arguments else ""
    if "." not in path or path.startswith("-"):
        return {}
    return {path: import_class(path, Source, "the command line", README)}
