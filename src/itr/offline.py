"""No hub while a model is built from a checkpoint: a file that somebody sent may not decide what is fetched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def offline() -> Iterator[None]:
    """The hub's clients refuse to go to the network meanwhile; files that they have fetched before are found."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
