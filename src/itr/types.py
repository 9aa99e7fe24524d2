"""What flows through the program, and the letters used in shape comments.

B  text-image pairs of a training batch (one row a caption)
R  some of these rows, whose share of the loss is wanted
I  images            C  captions
P  image patches     L  words (tokens) of a caption
D  width of the shared embedding space
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
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
        """The same padded to `length`."""
        extra = length - self.ids.shape[1]
        return Tokens(F.pad(self.ids, (0, extra), value=pad_id), F.pad(self.mask, (0, extra)))

    def pin_memory(self) -> Tokens:
        """The same in page-locked memory."""
        return Tokens(self.ids.pin_memory(), self.mask.pin_memory())

    def to(self, device: torch.device) -> Tokens:
        """The same on a device; see `Batch.to`."""
        return Tokens(_to(self.ids, device), _to(self.mask, device))


class HostTokens:
    """Tokenized captions that stay on the host when their batch goes to a device.

    Whoever embeds them may then look at their lengths without waiting for the device.

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
        """The same in page-locked memory."""
        return HostTokens(self.tokens.pin_memory())


Extra = Tensor | Tokens | HostTokens | list[str]


def _pinned(value: Extra) -> Extra:
    return value if isinstance(value, list) else value.pin_memory()


def _to(value: Tensor, device: torch.device) -> Tensor:
    return value.to(device, non_blocking=device.type not in ("cpu", "mps"))  # on MPS copies overtake each other


def _extra_to(value: Extra, device: torch.device) -> Extra:
    if isinstance(value, (list, HostTokens)):
        return value
    return value.to(device) if isinstance(value, Tokens) else _to(value, device)


@dataclass
class Batch:
    """Images and captions, tied by an index, so that an image shared by several captions is encoded once.

    Attributes:
        image: pixels [I, 3, H, W], uint8.
        image_id: identity of each image, unique in its split [I], int64.
        text: the captions [C, L].
        text_id: identity of each caption, unique in its split [C], int64.
        image_index: row of `image` that each caption belongs to [C], int64. In a training batch of
            plain pairs it is 0 .. B-1.
        image_extra: further fields of the images that a method needs, by name, each of I rows.
        text_extra: further fields of the captions that a method needs, by name, each of C rows.
        keys: shard and key of each image [I], for messages; empty where they aren't known.
        host_index: `image_index` where it was before the batch went to a device; None while it is there itself.
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

    @property
    def text_image_id(self) -> Tensor:
        """The identity of the image that each caption belongs to [C]."""
        return self.image_id[self.image_index]

    def __len__(self) -> int:
        return len(self.text_id)

    def parts(self, size: int) -> list[Batch]:
        """The batch in order, in parts of at most `size` captions with their images; 0 for one part.

        An image of more captions than that is a part of its own: no image is in two parts.
        """
        if not 0 < size < len(self):
            return [self]
        index = (self.image_index if self.host_index is None else self.host_index).tolist()
        assert index == sorted(index), "captions of an image must stand together, in the order of the images"
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
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device, without waiting for what lies in page-locked memory.

        Lightning takes this; otherwise it would go through all keys, one by one, in each step.
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
        )

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, for faster copies to a GPU."""
        return Batch(
            self.image.pin_memory(),
            self.image_id.pin_memory(),
            self.text.pin_memory(),
            self.text_id.pin_memory(),
            self.image_index.pin_memory(),
            {name: _pinned(value) for name, value in self.image_extra.items()},
            {name: _pinned(value) for name, value in self.text_extra.items()},
            self.keys,
        )


@dataclass
class Encoded:
    """One modality after a backbone (and, later, after each method's `embed`).

    Attributes:
        pooled: one embedding a sample, not normalised [N, D].
        tokens: features of patches or words, in the same width [N, T, D].
        mask: True at a patch or word, False at padding [N, T], bool.
        unimodal: embedding for search within the modality [N, E]; None where `pooled` serves both.
        known_unit: `unit`, where many blocks of rows ask for it; None to normalise when asked.
    """

    pooled: Tensor
    tokens: Tensor
    mask: Tensor
    unimodal: Tensor | None = None
    known_unit: Tensor | None = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.pooled)

    @property
    def within(self) -> Tensor:
        """What is compared within the modality: `unimodal` where there is one, `pooled` otherwise [N, E]."""
        return self.pooled if self.unimodal is None else self.unimodal

    def map(self, change: Callable[[Tensor], Tensor]) -> Encoded:
        """Apply `change` to every tensor."""
        unimodal = None if self.unimodal is None else change(self.unimodal)
        return Encoded(change(self.pooled), change(self.tokens), change(self.mask), unimodal)

    @property
    def unit(self) -> Tensor:
        """`pooled`, normalised [N, D]."""
        return F.normalize(self.pooled, dim=-1) if self.known_unit is None else self.known_unit

    def rows(self, index: Tensor | slice) -> Encoded:
        """Some rows, in the order of `index`."""
        some = self.map(lambda tensor: tensor[index])
        some.known_unit = None if self.known_unit is None else self.known_unit[index]
        return some

    def without_tokens(self) -> Encoded:
        """The same with no token-level features [N, 0, D], and without what they hold in memory, as a slice would."""
        count, _, width = self.tokens.shape
        return Encoded(
            self.pooled, self.tokens.new_empty(count, 0, width), self.mask.new_empty(count, 0), self.unimodal
        )

    def shortened(self, length: int) -> Encoded:
        """The same with the first `length` token-level features alone."""
        return Encoded(self.pooled, self.tokens[:, :length], self.mask[:, :length], self.unimodal)

    def padded(self, length: int) -> Encoded:
        """The same with token-level features padded to `length`."""
        extra = length - self.tokens.shape[1]
        tokens, mask = F.pad(self.tokens, (0, 0, 0, extra)), F.pad(self.mask, (0, extra))
        return Encoded(self.pooled, tokens, mask, self.unimodal)

    def arrays(self, side: str) -> dict[str, np.ndarray]:
        """The embeddings as they are written to files: SIDE, and SIDE_unimodal where there is one [N, D], float32."""
        kept = {side: self.pooled, f"{side}_unimodal": self.unimodal}
        return {name: value.float().cpu().numpy() for name, value in kept.items() if value is not None}

    @staticmethod
    def concatenate(parts: list[Encoded]) -> Encoded:
        """All rows of several parts, padded to the longest."""
        length = max(part.tokens.shape[1] for part in parts)
        parts = [part.padded(length) for part in parts]
        unimodal = [part.unimodal for part in parts if part.unimodal is not None]
        return Encoded(
            torch.cat([part.pooled for part in parts]),
            torch.cat([part.tokens for part in parts]),
            torch.cat([part.mask for part in parts]),
            torch.cat(unimodal) if unimodal else None,
        )


@dataclass
class Scores:
    """Some rows of the similarity matrix of a batch's B pairs, both ways; a loss of them is summed over such blocks.

    Attributes:
        rows: which R of the B pairs these are.
        image_to_text: score of these pairs' images against every caption [R, B], float32 or wider.
        score_texts: gives `text_to_image`, for a loss that asks for it.
        positives: True where these pairs and all others are of one image, either way [R, B], bool.
    """

    rows: slice
    image_to_text: Tensor
    score_texts: Callable[[], Tensor]
    positives: Tensor

    @staticmethod
    def whole(similarity: Tensor, positives: Tensor) -> Scores:
        """All rows, of the score of each image and caption [B, B] and where they belong together [B, B], bool."""
        return Scores(slice(0, len(similarity)), similarity, lambda: similarity.T, positives)

    @cached_property
    def text_to_image(self) -> Tensor:
        """Score of these pairs' captions against every image [R, B], float32 or wider."""
        return self.score_texts()

    @property
    def size(self) -> int:
        """B, the number of pairs of the batch."""
        return self.positives.shape[1]

    @property
    def share(self) -> float:
        """R / B, which of a value that is not made of rows (a regulariser) belongs to these."""
        return len(self.positives) / self.size


@dataclass
class Pairs:
    """The B pairs of a training step on all processes, embedded, and the rows of them that a loss is asked for.

    Row b of everything belongs to pair b. All processes hold the same embeddings; the gradients that reach a row are
    summed over processes.

    Attributes:
        image: the images [B], an image of several captions repeated.
        text: the captions [B].
        image_id: identity of each row's image [B].
        scores: the rows of the similarity matrix whose share of the loss is wanted; all of them, unless told otherwise
            by `itr.training.large_batch`.
        extra: what methods prepared, by name, each [B, ...].
    """

    image: Encoded
    text: Encoded
    image_id: Tensor
    scores: Scores
    extra: dict[str, Tensor]

    @property
    def rows(self) -> slice:
        """Which R of the B pairs the loss is asked for."""
        return self.scores.rows

    @property
    def share(self) -> float:
        """R / B, the share of a term that is not made of rows."""
        return self.scores.share

    def __len__(self) -> int:
        return len(self.image_id)
