"""The verbs that call one function, and their parsers: built from the functions' source, without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from itr.commands.parsing import parse_function, parse_verb
from itr.commands.signatures import PACKAGE, outline


@dataclass(frozen=True)
class FunctionVerb:
    """What the parser of a verb is built from.

    Attributes:
        functions: the source file and the name of each function, by the name that follows the verb; one under "" if
            none follows.
        what: what that name stands for, in capitals in the help.
        description: of the verb, if a name follows.
        opens_checkpoints: whether it has `--config`, for the classes that a checkpoint names.
        positional: an argument that is given without its name.
        lists: options that take one or more values, with their help.
        inlined: a dataclass whose fields are options of the functions that take one.
    """

    functions: Mapping[str, tuple[str, str]]
    what: str = ""
    description: str = ""
    opens_checkpoints: bool = False
    positional: str = ""
    lists: Mapping[str, str] = field(default_factory=dict)
    inlined: str = ""


FUNCTION_VERBS = {
    "embed": FunctionVerb({"": ("embedding/command.py", "embed")}, opens_checkpoints=True),
    "features": FunctionVerb({"": ("passes/features.py", "make_features")}, opens_checkpoints=True),
    "densify": FunctionVerb({"": ("passes/densify.py", "densify")}),
    "report": FunctionVerb(
        {"": ("report/make.py", "report")},
        opens_checkpoints=True,
        positional="runs",
        lists={
            "runs": "run folders; the others are compared with the first.",
            "embeddings": "precomputed embeddings, one .npz file per run.",
        },
    ),
    "convert": FunctionVerb(
        {name: ("interop/convert.py", f"convert_{name}") for name in ("cusa", "d2s", "lora")},
        what="kind",
        description="Convert a published checkpoint, or one with low-rank adapters, into an itr checkpoint.",
        positional="file",
    ),
    "evaluate": FunctionVerb(
        {
            **{n: ("protocols/crossmodal.py", f"evaluate_{n}") for n in ("coco", "eccv", "cxc", "transfer")},
            "sts": ("protocols/sts.py", "evaluate_sts"),
            "images": ("protocols/images.py", "evaluate_images"),
        },
        what="protocol",
        description="Evaluate a checkpoint, a named encoder or precomputed embeddings by a published protocol.",
        opens_checkpoints=True,
        inlined="Scored",
    ),
}


def parse(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """Parse the command line of one of these verbs.

    Args:
        arguments: the command line, the verb first.

    Returns:
        The name after the verb ("" if it takes none), and the values of the options by name. `--config` is still among
        them, see `itr.commands.parsing.options_of`.
    """
    verb = FUNCTION_VERBS[arguments[0]]
    functions = {name: outline(PACKAGE / file, own, verb.inlined) for name, (file, own) in verb.functions.items()}
    opens = verb.opens_checkpoints
    if "" in functions:
        return "", parse_verb(arguments, functions[""], opens, verb.positional, verb.lists)
    return parse_function(arguments, functions, verb.what, verb.description, verb.positional, opens_checkpoints=opens)
