"""The teacher of dense captions: the text tower of a checkpoint of D2S-VSE's first stage."""

from __future__ import annotations

import torch
from torch import Tensor

from itr.checkpoints import open_checkpoint
from itr.errors import UserError
from itr.files.digests import weights_identity
from itr.teachers.base import Encoder, Precision, Teacher
from itr.types import Tokens


def first_stage_teacher(path: str, device: str = "cpu", precision: Precision = "32") -> Teacher:
    """The text tower of a checkpoint, which embeds dense captions as the frozen teacher of D2S does.

    Raises:
        UserError: the checkpoint could not be opened.
    """
    try:
        backbone = open_checkpoint(path).backbone
    except UserError as error:
        message = f"{error}; --modality dense takes the checkpoint of a run with --data.texts=dense"
        raise UserError(message) from error

    def run(tokens: Tokens) -> Tensor:
        return backbone.encode_text(tokens).pooled

    identity = weights_identity(backbone.state_dict())
    encoder = Encoder(backbone, run, weights=identity, tokenizer=backbone.tokenizer)
    return Teacher(encoder, torch.device(device), precision)
