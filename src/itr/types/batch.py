"""Inputs of a model: images and tokenized captions, on the host or on a device."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Tokens:
    """Tokenized captions, padded to a common length.

    Attributes:
        ids: token ids [C, L], int64.
        mask: True at a token, False at padding [C, L], bool.
    """

    ids: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice) -> Tokens:
        return Tokens(self.ids[rows], self.mask[rows])

    def padded(self, length: int, pad_id: int) -> Tokens:
        """Pad all captions to `length`."""
        extra = length - self.ids.shape[1]
        return Tokens(F.pad(self.ids, (0, extra), value=pad_id), F.pad(self.mask, (0, extra)))

    def pin_memory(self) -> Tokens:
        """Copy to page-locked memory."""
        return Tokens(self.ids.pin_memory(), self.mask.pin_memory())

    def to(self, device: torch.device) -> Tokens:
        """Move to a device; see `Batch.to`."""
        return Tokens(_to(self.ids, device), _to(self.mask, device))


class HostTokens:
    """Tokenized captions that stay on the host when their batch moves to a device.

    Code that embeds them can then read their lengths without waiting for the device.

    Args:
        tokens: the captions, on the CPU.
    """

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> HostTokens:
        return HostTokens(self.tokens[rows])

    def pin_memory(self) -> HostTokens:
        """Copy to page-locked memory."""
        return HostTokens(self.tokens.pin_memory())


Extra = Tensor | Tokens | HostTokens | list[str]


def _pinned(value: Extra) -> Extra:
    return value if isinstance(value, list) else value.pin_memory()


def _to(value: Tensor, device: torch.device) -> Tensor:
    return value.to(
        device, non_blocking=device.type not in ("cpu", "mps")
    )  # on MPS asynchronous copies may be reordered


def _extra_to(value: Extra, device: torch.device) -> Extra:
    if isinstance(value, (list, HostTokens)):
        return value
    return value.to(device) if isinstance(value, Tokens) else _to(value, device)


@dataclass
class Batch:
    """Images and captions linked by an index, so that an image shared by several captions is encoded once.

    Attributes:
        image: pixels [I, 3, H, W], uint8, or features [I, ...] if the backbone has an `image_field`.
        image_id: id of each image, unique in its split [I], int64.
        text: the captions [C, L].
        text_id: id of each caption, unique in its split [C], int64.
        image_index: row of `image` that each caption belongs to [C], int64; 0 .. B-1 in a training batch of pairs.
        image_extra: further fields of the images that a method needs, by name, with I rows each.
        text_extra: further fields of the captions that a method needs, by name, with C rows each.
        keys: shard and key of each image [I], for messages; empty if unknown.
        host_index: copy of `image_index` on the host after the batch moved to a device; None before.
        content_id: hash of each image's file in a training batch [I], int64; None if unknown.
    """

    image: Tensor
    image_id: Tensor
    text: Tokens
    text_id: Tensor
    image_index: Tensor
    image_extra: dict[str, Extra] = field(default_factory=dict)
    text_extra: dict[str, Extra] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    host_index: Tensor | None = None
    content_id: Tensor | None = None

    @property
    def text_image_id(self) -> Tensor:
        """The id of each caption's image [C]."""
        return self.image_id[self.image_index]

    @property
    def text_content_id(self) -> Tensor:
        """A number for each caption that captions of equal images share [C]."""
        return (self.image_id if self.content_id is None else self.content_id)[self.image_index]

    def __len__(self) -> int:
        return len(self.text_id)

    def parts(self, size: int) -> list[Batch]:
        """Split the batch, in order, into parts of at most `size` captions with their images; 0 for one part.

        No image is in two parts, so an image with more than `size` captions is a part by itself.
        """
        if not 0 < size < len(self):
            return [self]
        index = (self.image_index if self.host_index is None else self.host_index).tolist()
        assert index == sorted(index), "captions of an image must be consecutive, in the order of the images"
        bounds, end = [0], 0
        for row in range(1, len(self) + 1):
            if row == len(self) or index[row] != index[row - 1]:  # an image ends here
                if row - bounds[-1] > size and end > bounds[-1]:
                    bounds.append(end)
                end = row
        bounds.append(len(self))
        return [
            self._part(slice(first, last), slice(index[first], index[last - 1] + 1)) for first, last in pairwise(bounds)
        ]

    def _part(self, captions: slice, images: slice) -> Batch:
        return Batch(
            self.image[images],
            self.image_id[images],
            self.text[captions],
            self.text_id[captions],
            self.image_index[captions] - images.start,
            {name: value[images] for name, value in self.image_extra.items()},
            {name: value[captions] for name, value in self.text_extra.items()},
            self.keys[images],
            content_id=None if self.content_id is None else self.content_id[images],
        )

    def to(self, device: torch.device | str) -> Batch:
        """Move to a device, without waiting for copies from page-locked memory.

        Lightning calls this method; without it, Lightning would visit every key, one by one, in each step.
        """
        device = torch.device(device)
        return Batch(
            _to(self.image, device),
            _to(self.image_id, device),
            self.text.to(device),
            _to(self.text_id, device),
            _to(self.image_index, device),
            {name: _extra_to(value, device) for name, value in self.image_extra.items()},
            {name: _extra_to(value, device) for name, value in self.text_extra.items()},
            self.keys,
            self.image_index if self.host_index is None else self.host_index,
            None if self.content_id is None else _to(self.content_id, device),
        )

    def pin_memory(self) -> Batch:
        """Copy to page-locked memory, for faster copies to a GPU."""
        return Batch(
            self.image.pin_memory(),
            self.image_id.pin_memory(),
            self.text.pin_memory(),
            self.text_id.pin_memory(),
            self.image_index.pin_memory(),
            {name: _pinned(value) for name, value in self.image_extra.items()},
            {name: _pinned(value) for name, value in self.text_extra.items()},
            self.keys,
            content_id=None if self.content_id is None else self.content_id.pin_memory(),
        )
