"""Opening a checkpoint alone: no config, no network, no code that it brings along."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from itr.errors import UserError, refusing

if TYPE_CHECKING:  # Lightning takes seconds to import, which verbs that may open a checkpoint seldom need
    from itr.module import RetrievalModule


def open_checkpoint(path: str) -> RetrievalModule:
    """The model of a checkpoint, in evaluation.

    Raises:
        UserError: there is no such file, or it is none of ours.
    """
    if not Path(path).expanduser().is_file():
        raise UserError(f"there is no checkpoint {path}")
    from itr.module import RetrievalModule

    with refusing(f"{path} is no checkpoint that `itr fit` or `itr convert` wrote"):
        opened = RetrievalModule.load_from_checkpoint(Path(path).expanduser(), map_location="cpu", weights_only=True)
        return opened.eval()
