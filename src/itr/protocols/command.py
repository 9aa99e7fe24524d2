"""`itr evaluate PROTOCOL`: a published protocol on any checkpoint or any named encoder."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields

from itr.commands.parsing import parse_function
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
OF_PAIRS = ("coco", "eccv", "cxc", "transfer")  # these score images against captions, from wherever `Scored` has them


def main(arguments: list[str]) -> None:
    """Parse the command line and measure."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    description = "Measure a checkpoint, a named encoder or ready embeddings by a published protocol."
    common = dict.fromkeys(OF_PAIRS, Scored)
    name, values = parse_function(arguments, PROTOCOLS, "protocol", description, common=common, opens_checkpoints=True)
    if name in OF_PAIRS:
        values = {"scored": Scored(**{f.name: values.pop(f.name) for f in fields(Scored)}), **values}
    PROTOCOLS[name](**values)
