"""`itr evaluate PROTOCOL`: evaluate a checkpoint or a named encoder by a published protocol."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields

from itr.commands.parsing import options_of
from itr.commands.verbs import parse
from itr.protocols.crossmodal import evaluate_coco, evaluate_cxc, evaluate_eccv, evaluate_transfer
from itr.protocols.images import evaluate_images
from itr.protocols.scored import Scored
from itr.protocols.sts import evaluate_sts

PROTOCOLS: dict[str, Callable[..., None]] = {
    "coco": evaluate_coco,
    "eccv": evaluate_eccv,
    "cxc": evaluate_cxc,
    "transfer": evaluate_transfer,
    "sts": evaluate_sts,
    "images": evaluate_images,
}
OF_PAIRS = ("coco", "eccv", "cxc", "transfer")  # these score images against captions and take the options of `Scored`


def main(arguments: list[str]) -> None:
    """Parse the command line and run the protocol."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    name, values = parse(arguments)
    values = options_of(values)
    if name in OF_PAIRS:
        values = {"scored": Scored(**{f.name: values.pop(f.name) for f in fields(Scored)}), **values}
    PROTOCOLS[name](**values)
