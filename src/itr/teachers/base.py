"""A frozen encoder of one modality on a device: images or captions in, one embedding each out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from itr.backbones.base import ImageSpec, Tokenizer
from itr.errors import UserError, quoted
from itr.images.transforms import Decoded, EvaluationTransform
from itr.types import Tokens

Modality = Literal["image", "text", "dense"]
MODALITIES: tuple[Modality, ...] = ("image", "text", "dense")
Precision = Literal["32", "bf16", "16"]
TeacherInputs = Tensor | Tokens | Sequence[str]
PART_SIZES = {"cpu": 32, "cuda": 256}  # captions of similar length that a teacher embeds together


class ImageTransform:
    """The teacher's own preprocessing up to uint8: resize, then crop the center.

    Args:
        spec: the teacher's input format.
        resize: short side before the crop, if it is larger than the teacher's input.
    """

    def __init__(self, spec: ImageSpec, resize: int | None = None) -> None:
        self.size, self.to_rgb = spec.size, spec.to_rgb
        self.resize = EvaluationTransform(replace(spec, size=max(resize or spec.size, spec.size)))

    def __call__(self, image: Decoded) -> Tensor:
        """An image of any size to RGB [3, size, size], uint8."""
        cropped: Tensor = TF.center_crop(self.resize(image), [self.size, self.size])
        return cropped


@dataclass
class Encoder:
    """A loaded model, before it is frozen and moved to its device.

    Attributes:
        module: the module with its weights.
        run: turns normalized images [I, 3, H, H] or captions into features [n, D]; with a tokenizer, captions are
            tokens on the module's device.
        spec: image format; None for text.
        resize: short side before the crop.
        weights: identity of its weights, if it is an itr checkpoint.
        tokenizer: tokenizer for the workers; None for images, and if the module tokenizes captions itself.
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
        weights: identity of its weights, if it is an itr checkpoint.
        transform: preprocessing of an image, for the workers; None for text.
        tokenizer: tokenizer for the workers; None for images, and if the encoder tokenizes captions itself.
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
            raise UserError(f"the teacher could not encode a test input of its own size: {quoted(error)}") from None

    def encode(self, inputs: TeacherInputs) -> Tensor:
        """Features [n, D], float32, on the CPU, of images [n, 3, H, H], uint8, or of captions."""
        return self.features(inputs).cpu()

    def features(self, inputs: TeacherInputs) -> Tensor:
        """The same on the teacher's device. Captions may be tokens from `tokenizer`, on the host."""
        with torch.inference_mode(), torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            if isinstance(inputs, Tensor):
                pixels = inputs.to(self.device, non_blocking=True).float()  # transfer bytes, not floats
                rows = self.encoder.run((pixels - self.mean) / self.std)
            elif isinstance(inputs, Tokens):
                rows = self._by_length(inputs)
            elif self.tokenizer is not None:
                rows = self._by_length(self.tokenizer(inputs))
            else:
                rows = self.encoder.run(inputs)
        return rows.to(torch.float32, copy=True)  # inference-mode tensors can't be used in a loss

    def _by_length(self, tokens: Tokens) -> Tensor:
        """Embed captions in groups of similar length, which saves padding."""
        size = PART_SIZES.get(self.device.type, PART_SIZES["cpu"])
        if getattr(self.tokenizer, "full_length", False):  # padding affects the embedding
            groups = [(torch.arange(len(tokens)), tokens)]
        else:
            groups = list(by_length(tokens, size))
        order, parts = [], []
        for index, part in groups:
            order.append(index)
            parts.append(self.encoder.run(Tokens(self._to_device(part.ids), self._to_device(part.mask))))
        return torch.cat(parts)[self._to_device(torch.cat(order).argsort())]

    def _to_device(self, tensor: Tensor) -> Tensor:
        """Move a host tensor to the device; pinned memory avoids waiting for a GPU."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def settle(self, compiled: bool = False) -> None:
        """Prepare for many calls, with the same results.

        Weights of linear layers are stored in autocast's precision, instead of being cast in every call.

        Args:
            compiled: compile the module with dynamic shapes; results are then equal up to rounding.
        """
        for layer in self.encoder.module.modules() if self.dtype is not None else ():
            if isinstance(layer, nn.Linear):
                layer.to(self.dtype)
        if compiled:
            self.encoder.module.compile(dynamic=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self  # it is frozen, so copies of the model, such as its moving average, share it


def by_length(tokens: Tokens, size: int) -> Iterator[tuple[Tensor, Tokens]]:
    """Split captions into parts of at most `size`, shortest first, padded to the longest of each part.

    Args:
        tokens: captions on the host.
        size: maximum number of captions in a part.

    Yields:
        Indices of the captions [n], and their tokens.
    """
    lengths = tokens.mask.sum(1)
    for index in lengths.argsort(stable=True).split(size):
        width = int(lengths[index].max())
        yield index, Tokens(tokens.ids[index, :width], tokens.mask[index, :width])
