"""Opening a checkpoint by itself: without a config, a network or code from the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from itr.commands.inputs import check_checkpoint
from itr.errors import UserError, refusing
from itr.files.archives import check_intact
from itr.files.states import FileState

if TYPE_CHECKING:  # Lightning takes seconds to import, and verbs that may open a checkpoint seldom need it
    from itr.module import RetrievalModule


def open_checkpoint(path: str) -> RetrievalModule:
    """The model of a checkpoint, in evaluation mode.

    Raises:
        UserError: the file does not exist, is damaged, or is not an itr checkpoint.
    """
    check_checkpoint(path)
    check_intact(Path(path).expanduser())
    from itr.module import RetrievalModule

    with refusing(f"{path} is not a checkpoint that `itr fit` or `itr convert` has written"):
        opened = RetrievalModule.load_from_checkpoint(Path(path).expanduser(), map_location="cpu", weights_only=True)
        return opened.eval()


def open_identified(path: str) -> tuple[RetrievalModule, dict[str, str]]:
    """The model of a checkpoint, and the file name and hash of exactly the file that it was loaded from.

    Raises:
        UserError: as `open_checkpoint`, or the file was replaced in between, as a training run does.
    """
    file = Path(path).expanduser()
    check_checkpoint(path)
    from itr.evaluation.provenance import checkpoint_identity

    state, identity = FileState.of(file), checkpoint_identity(file)
    module = open_checkpoint(path)
    if not FileState.of(file).same_content(state):
        raise UserError(f"the checkpoint {path} changed while it was loaded; run the command again")
    return module, identity
