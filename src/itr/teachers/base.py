"""A frozen encoder of one modality that runs on a device: images or captions in, one vector each out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from itr.backbones.base import ImageSpec, Tokenizer
from itr.backbones.tokenizers import first_line
from itr.errors import UserError
from itr.images.transforms import EvaluationTransform
from itr.types import Tokens

Modality = Literal["image", "text", "dense"]
MODALITIES: tuple[Modality, ...] = ("image", "text", "dense")
Precision = Literal["32", "bf16", "16"]
Inputs = Tensor | Tokens | Sequence[str]
PART = {"cpu": 32, "cuda": 256}  # captions of about the same length that a teacher embeds together


class ImageTransform:
    """The teacher's own preprocessing up to uint8: resize, then crop the centre.

    Args:
        spec: what the teacher takes.
        resize: short side before the crop, where it is larger than the image that the teacher takes.
    """

    def __init__(self, spec: ImageSpec, resize: int | None = None) -> None:
        self.size = spec.size
        self.resize = EvaluationTransform(replace(spec, size=max(resize or spec.size, spec.size)))

    def __call__(self, image: Tensor) -> Tensor:
        """[3, H, W] to [3, size, size], uint8."""
        cropped: Tensor = TF.center_crop(self.resize(image), [self.size, self.size])
        return cropped


@dataclass
class Encoder:
    """What a loader finds.

    Attributes:
        module: its weights.
        run: turns normalised images [I, 3, H, H] or captions into features [n, D]; captions as tokens on its device
            where there is a tokenizer.
        spec: image format; None for text.
        resize: short side before the crop.
        weights: identity of its weights, where it is a checkpoint of ours.
        tokenizer: of captions, for the workers; None for images, and where the module has a way of its own.
    """

    module: nn.Module
    run: Callable[[Any], Tensor]
    spec: ImageSpec | None = None
    resize: int | None = None
    weights: str = ""
    tokenizer: Tokenizer | None = None


class Teacher:
    """A frozen encoder on a device.

    Attributes:
        width: D of a feature.
        weights: identity of its weights, where it is a checkpoint of ours.
        transform: preprocessing of an image, for the workers; None for text.
        tokenizer: of captions, for the workers; None for images, and where the encoder has a way of its own.
    """

    def __init__(self, encoder: Encoder, device: torch.device, precision: Precision = "32") -> None:
        self.encoder, self.device, self.weights = encoder, device, encoder.weights
        self.tokenizer = encoder.tokenizer
        self.dtype = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}[precision]
        encoder.module.to(device).eval().requires_grad_(False)
        spec = encoder.spec
        self.transform: ImageTransform | None = None
        probe: Tensor | list[str] = ["a word"]
        if spec is not None:
            self.transform = ImageTransform(spec, encoder.resize)
            self.mean, self.std = (255 * torch.tensor(v, device=device).view(3, 1, 1) for v in (spec.mean, spec.std))
            probe = torch.zeros(1, 3, spec.size, spec.size, dtype=torch.uint8)
        try:
            self.width = self.encode(probe).shape[1]
        except (RuntimeError, ValueError, IndexError) as error:
            raise UserError(
                f"the teacher can't encode an image or a caption of its size: {first_line(error)}"
            ) from None

    def encode(self, inputs: Inputs) -> Tensor:
        """Features [n, D], float32, on the CPU, of images [n, 3, H, H], uint8, or of captions."""
        return self.features(inputs).cpu()

    def features(self, inputs: Inputs) -> Tensor:
        """The same on the teacher's device. Captions may be what `tokenizer` made of them, on the host."""
        with torch.inference_mode(), torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            if isinstance(inputs, Tensor):
                pixels = inputs.to(self.device, non_blocking=True).float()  # bytes go to the device, not floats
                rows = self.encoder.run((pixels - self.mean) / self.std)
            elif isinstance(inputs, Tokens):
                rows = self._by_length(inputs)
            elif self.tokenizer is not None:
                rows = self._by_length(self.tokenizer(inputs))
            else:
                rows = self.encoder.run(inputs)
        return rows.to(torch.float32, copy=True)  # what inference mode made can't take part in a loss

    def _by_length(self, tokens: Tokens) -> Tensor:
        """Embed captions, those of about the same length together, so that little padding is paid for."""
        size = PART.get(self.device.type, PART["cpu"])
        if getattr(self.tokenizer, "full_length", False):  # its padding takes part
            stretches = [(torch.arange(len(tokens)), tokens)]
        else:
            stretches = list(by_length(tokens, size))
        order, parts = [], []
        for index, part in stretches:
            order.append(index)
            parts.append(self.encoder.run(Tokens(self._sent(part.ids), self._sent(part.mask))))
        return torch.cat(parts)[self._sent(torch.cat(order).argsort())]

    def _sent(self, tensor: Tensor) -> Tensor:
        """A tensor made on the host, on the device; from memory that is not page-locked a GPU would be waited for."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def settle(self, compiled: bool = False) -> None:
        """Make ready for many calls, with the same results.

        Linear layers keep their weights in the precision that autocast gives them, instead of being cast every time.

        Args:
            compiled: compile the module, for shapes that change; results are then equal up to rounding.
        """
        for layer in self.encoder.module.modules() if self.dtype is not None else ():
            if isinstance(layer, nn.Linear):
                layer.to(self.dtype)
        if compiled:
            self.encoder.module.compile(dynamic=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self  # frozen, so a copy of the model, such as its moving average, shares it


def by_length(tokens: Tokens, size: int) -> Iterator[tuple[Tensor, Tokens]]:
    """Captions in parts of at most `size`, the shortest first, without padding beyond the longest of a part.

    Args:
        tokens: captions on the host.
        size: captions of a part.

    Yields:
        Which captions [n], and their tokens.
    """
    lengths = tokens.mask.sum(1)
    for index in lengths.argsort(stable=True).split(size):
        width = int(lengths[index].max())
        yield index, Tokens(tokens.ids[index, :width], tokens.mask[index, :width])
