"""Plug-ins that use everything the interfaces of backbones and methods allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from itr.backbones import VSE, Backbone
from itr.backbones.base import ImageSpec
from itr.backbones.tokenizers import make_tokenizer
from itr.data.loading.fields import Field
from itr.data.shards.schema import Sample
from itr.images.transforms import decode
from itr.losses import info_nce
from itr.methods import Method, MethodModule
from itr.types import Batch, Encoded, Pairs, Tokens


class Regions(Field):
    """Mean and spread of colours in each of four quarters of an image [I, 4, 6], float32."""

    name, of = "regions", "image"

    def read(self, samples: Sequence[Sample], captions: Sequence[int]) -> Tensor:
        found = []
        for sample in samples:
            pixels = decode(sample.image, 10**6).float() / 255
            height, width = pixels.shape[1] // 2, pixels.shape[2] // 2
            parts = [pixels[:, y : y + height, x : x + width].flatten(1) for y in (0, height) for x in (0, width)]
            found.append(torch.stack([torch.cat([part.mean(dim=1), part.std(dim=1)]) for part in parts]))
        return torch.stack(found)


class Numbers(Field):
    """The size of each image's file in bytes [I], as an example of a further field."""

    name, of = "bytes", "image"

    def read(self, samples: Sequence[Sample], captions: Sequence[int]) -> Tensor:
        return torch.tensor([float(len(sample.image)) for sample in samples])


class RegionBackbone(Backbone):
    """Images as region features, and a further field; no pixels are decoded."""

    image_field = "regions"
    needs = ("bytes",)

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.dim, self.tokenizer = dim, make_tokenizer(None, None)
        self.set_image_spec(ImageSpec(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
        self.image, self.size = nn.Linear(6, dim), nn.Linear(1, dim)
        self.words = nn.Embedding(self.tokenizer.vocab_size, dim)

    def fields(self) -> Sequence[Any]:
        return [Regions(), Numbers()]

    def encode_image(self, image: Tensor) -> Encoded:
        regions = self.image(image)
        return Encoded(regions.mean(dim=1), regions, torch.ones(regions.shape[:2], dtype=torch.bool))

    def encode_images(self, batch: Batch) -> Encoded:
        encoded = self.encode_image(batch.image)
        return encoded.replace(pooled=encoded.pooled + self.size(batch.image_extra["bytes"][:, None] / 1e4))

    def encode_text(self, text: Tokens) -> Encoded:
        words = self.words(text.ids) * text.mask[..., None]
        return Encoded(words.sum(dim=1) / text.mask.sum(dim=1, keepdim=True), words, text.mask)

    def is_tower(self, parameter_name: str) -> bool:
        return False


class TwoStage(VSE):
    """A cosine that selects three candidates, and late interaction that sorts them."""

    needs_tokens = True
    rescored = 3

    def rescore(self, image: Encoded, text: Encoded) -> Tensor:
        patches, words = (nn.functional.normalize(side.tokens, dim=-1) for side in (image, text))
        best = torch.einsum("npd,nld->npl", patches, words).masked_fill(~image.mask[..., None], -1).amax(dim=1)
        return (best * text.mask).sum(dim=1) / text.mask.sum(dim=1)


class UncertainModule(MethodModule):
    """Log-variances and two embeddings of each sample, a score that they change, and a loss on rows and columns."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.variance = nn.ModuleDict({side: nn.Linear(dim, dim) for side in ("image", "text")})
        self.views = nn.ModuleDict({side: nn.Linear(dim, 2 * dim) for side in ("image", "text")})
        self.seen: list[float] = []

    def _embed(self, encoded: Encoded, side: str) -> Encoded:
        views = self.views[side](encoded.pooled).unflatten(-1, (2, -1))
        found = {"log_variance": self.variance[side](encoded.pooled), "views": views}
        return encoded.replace(extra={**encoded.extra, **found})

    def embed_image(self, encoded: Encoded) -> Encoded:
        return self._embed(encoded, "image")

    def embed_text(self, encoded: Encoded) -> Encoded:
        return self._embed(encoded, "text")

    def change_scores(self, scores: Tensor, image: Encoded, text: Encoded) -> Tensor:
        spread = [side.extra["log_variance"].exp().mean(dim=1) for side in (image, text)]
        return scores - 0.1 * (spread[0][:, None] + spread[1][None, :])

    def losses(self, pairs: Pairs) -> dict[str, Tensor]:
        self.seen.append(pairs.progress)
        by_views = pairs.score(best_of_views)
        return {"views": info_nce(by_views, torch.tensor(0.1)) * (1 + pairs.progress)}


def best_of_views(image: Encoded, text: Encoded) -> Tensor:
    """The best cosine of any two views [I, C]."""
    views = [nn.functional.normalize(side.extra["views"], dim=-1) for side in (image, text)]
    return torch.einsum("ivd,cwd->icvw", *views).amax(dim=(2, 3))


class Uncertain(Method):
    """Adds named embeddings to each sample, which score and loss use."""

    name = "uncertain"

    @property
    def weights(self) -> dict[str, float]:
        return {"views": 0.5}

    def build(self, backbone: Backbone) -> UncertainModule:
        return UncertainModule(backbone.dim)


def npz(path: Any) -> dict[str, np.ndarray]:
    """The arrays of a file."""
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays}
