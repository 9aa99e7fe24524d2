"""`itr evaluate PROTOCOL`: a published protocol on any checkpoint or any named encoder."""

from __future__ import annotations

import os
from collections.abc import Callable

from itr.evaluation.images import evaluate_images
from itr.evaluation.sts import evaluate_sts
from itr.parsing import run_function

PROTOCOLS: dict[str, Callable[..., None]] = {"sts": evaluate_sts, "images": evaluate_images}


def main(arguments: list[str]) -> None:
    """Parse the command line and measure."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run_function(arguments, PROTOCOLS, "protocol", "Measure a checkpoint or a named encoder by a published protocol.")
