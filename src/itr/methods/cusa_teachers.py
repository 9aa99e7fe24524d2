"""Where CUSA's soft labels come from: features made once, or a frozen teacher that runs with the training."""

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
SHOWN: Final = {"image": (VIEW,), "text": (TOKENS, CAPTIONS)}  # what a teacher is shown, the best first


@dataclass(frozen=True)
class Teachers:
    """Teachers that run in the loop, named as for `itr features --model`; one that is missing is read from files.

    They lie neither in the model nor in its checkpoint, and are loaded when training begins.

    Args:
        image: sees each image without augmentation, in its own preprocessing.
        text: reads the captions of the batch.
        output: of the image teacher: one pooled vector an image, or all its tokens end to end.
        precision: of their arithmetic, whatever that of the training is.
        compile: whether they go through `torch.compile`, which takes a minute at the first step.
    """

    image: str | None = None
    text: str | None = None
    output: Literal["pooled", "tokens"] = "pooled"
    precision: Literal["32", "bf16", "16"] = "32"
    compile: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields of a batch that the data module reads for them."""
        stored = [f"teacher_{side}" for side in ("image", "text") if getattr(self, side) is None]
        return (*stored, *([CAPTIONS] if self.text is not None else []))

    def load(self, device: str) -> dict[str, Teacher]:
        """Those that run in the loop, by modality; random numbers go on as if they had not been loaded.

        Raises:
            UserError: one can't be had, or this machine has nothing to compile it with.
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
        UserError: neither does the teacher run in the loop nor has the batch its features.
    """
    extra = batch.image_extra if side == "image" else batch.text_extra
    shown = next((extra[name] for name in SHOWN[side] if name in extra), None)
    if side in loaded and shown is not None:
        rows = loaded[side].features(shown.tokens if isinstance(shown, HostTokens) else shown)
    else:
        stored = extra.get(f"teacher_{side}")
        if not isinstance(stored, Tensor):
            raise UserError(
                f"CUSA needs teacher_{side}, a teacher's features of each {side}; make them by `itr features`, or give "
                f"teachers.{side} to run one in the loop"
            )
        rows = stored
    return rows[batch.image_index] if side == "image" else rows
