"""The source of CUSA's soft labels: precomputed features, or frozen teachers that run during training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import torch
from torch import Tensor

from itr.data.loading.fields import CAPTIONS
from itr.errors import UserError
from itr.types import Batch, HostTokens

if TYPE_CHECKING:
    from itr.teachers.base import Teacher

VIEW = "teacher_view"
TOKENS = "teacher_tokens"
INPUTS: Final = {"image": (VIEW,), "text": (TOKENS, CAPTIONS)}  # inputs that a teacher accepts, preferred first


@dataclass(frozen=True)
class Teachers:
    """Teachers that run during training, named as for `itr features --model`; None reads precomputed features instead.

    They are not part of the model or its checkpoint, and are loaded when training begins.

    Args:
        image: image teacher; it sees each image without augmentation, in its own preprocessing.
        text: text teacher; it reads the captions of the batch.
        output: output of the image teacher: one pooled embedding per image, or all its tokens, concatenated.
        precision: precision of the teachers, independent of that of training.
        compile: whether to compile them with `torch.compile`, which takes about a minute at the first step.
    """

    image: str | None = None
    text: str | None = None
    output: Literal["pooled", "tokens"] = "pooled"
    precision: Literal["32", "bf16", "16"] = "32"
    compile: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """The batch fields that the data module reads for the teachers."""
        stored = [f"teacher_{side}" for side in ("image", "text") if getattr(self, side) is None]
        return (*stored, *([CAPTIONS] if self.text is not None else []))

    def load(self, device: str) -> dict[str, Teacher]:
        """Load the teachers, by modality, without changing the state of the random number generators.

        Raises:
            UserError: a teacher could not be loaded, or this machine has no compiler for it.
        """
        from itr.teachers.load import load_teacher
        from itr.training.compiling import check_compiler

        if self.compile:
            check_compiler(torch.device(device).type, "teachers.compile")
        found = {}
        with torch.random.fork_rng(devices=[]):
            if self.image is not None:
                found["image"] = load_teacher("image", self.image, self.output, device, self.precision)
            if self.text is not None:
                found["text"] = load_teacher("text", self.text, "pooled", device, self.precision)
        for teacher in found.values():
            teacher.settle(self.compile)
        return found


def teacher_features(batch: Batch, side: Literal["image", "text"], loaded: dict[str, Teacher]) -> Tensor:
    """A teacher's features of each caption, or of each caption's image [C, D].

    Raises:
        UserError: the teacher is not loaded and the batch does not contain its features.
    """
    extra = batch.image_extra if side == "image" else batch.text_extra
    inputs = next((extra[name] for name in INPUTS[side] if name in extra), None)
    if side in loaded and inputs is not None:
        rows = loaded[side].features(inputs.tokens if isinstance(inputs, HostTokens) else inputs)
    else:
        stored = extra.get(f"teacher_{side}")
        if not isinstance(stored, Tensor):
            raise UserError(
                f"CUSA needs teacher_{side}, a teacher's features of each {side}; compute them with `itr features`, or "
                f"set teachers.{side} to run a teacher during training"
            )
        rows = stored
    return rows[batch.image_index] if side == "image" else rows
