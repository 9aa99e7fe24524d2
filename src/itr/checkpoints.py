"""Opening a checkpoint by itself: without a config, a network or code from the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from itr.errors import UserError, refusing

if TYPE_CHECKING:  # Lightning takes seconds to import, and verbs that may open a checkpoint seldom need it
    from itr.module import RetrievalModule


def open_checkpoint(path: str) -> RetrievalModule:
    """The model of a checkpoint, in evaluation mode.

    Raises:
        UserError: the file does not exist, or it is not an itr checkpoint.
    """
    if not Path(path).expanduser().is_file():
        raise UserError(f"the checkpoint {path} does not exist")
    from itr.module import RetrievalModule

    with refusing(f"{path} is not a checkpoint that `itr fit` or `itr convert` has written"):
        opened = RetrievalModule.load_from_checkpoint(Path(path).expanduser(), map_location="cpu", weights_only=True)
        return opened.eval()
