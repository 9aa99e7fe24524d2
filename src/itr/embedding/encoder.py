"""Embedding of any texts and image files with a checkpoint or a named encoder, for all protocols."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from itr.distributed import choose_device
from itr.errors import UserError
from itr.evaluation.scoring import CosineScorer, Scorer, scorer_of
from itr.images.transforms import BadImageError, EvaluationTransform, read_view
from itr.module import RetrievalModule
from itr.teachers.base import Precision
from itr.types import Encoded

Space = Literal["auto", "uni", "cross", "both"]
MAX_PIXELS = 10**9


class ReadImage(NamedTuple):
    """An image file from a worker: transformed pixels or the reason for their absence, and a hash of its bytes."""

    number: int
    pixels: Tensor | None
    reason: str
    digest: str


class ImageFiles(Dataset[ReadImage]):
    """Image files, transformed for an encoder."""

    def __init__(self, paths: Sequence[Path], transform: Callable[[Any], Tensor]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> ReadImage:
        digest = ""
        try:
            if self.paths[index].is_fifo():
                raise OSError(f"{self.paths[index]} is not a file, but a pipe")
            data = self.paths[index].read_bytes()
            digest = hashlib.blake2b(data, digest_size=16).hexdigest()
            return ReadImage(index, read_view(data, MAX_PIXELS, self.transform), "", digest)
        except (BadImageError, OSError) as error:
            return ReadImage(index, None, str(error), digest)


@dataclass
class Images:
    """Embedded image files.

    Attributes:
        encoded: embeddings of the images that could be decoded, in the order of their paths [N].
        index: their positions in the list of paths [N].
        failed: why each other image could not be decoded, by its position.
        digests: a hash of the bytes of each path.
    """

    encoded: Encoded
    index: list[int]
    failed: dict[int, str]
    digests: list[str]


@dataclass
class Embedder:
    """Embeds texts and image files in batches, each once, with any model.

    Attributes:
        device: the device of the model.
        encode_text: texts to embeddings; None for an encoder of images only.
        encode_image: transformed pixels [I, 3, H, H], uint8, to embeddings; None for an encoder of texts only.
        transform: preprocessing of an image.
        model: identifies the model in files of results.
        scorer: how its images and captions are scored; token-level features are kept if it needs them.
        precision: of the towers.
        batch_size: texts or images per batch.
        num_workers: processes that read and decode images.
    """

    device: torch.device
    encode_text: Callable[[Sequence[str]], Encoded] | None = None
    encode_image: Callable[[Tensor], Encoded] | None = None
    transform: Callable[[Any], Tensor] | None = None
    model: dict[str, Any] = field(default_factory=dict)
    scorer: Scorer = field(default_factory=CosineScorer)
    precision: Precision = "32"
    batch_size: int = 64
    num_workers: int = 2

    def texts(self, texts: Sequence[str], what: str = "texts") -> Encoded:
        """The embeddings of texts, in their order, in float32 on the CPU; repeated texts are encoded once.

        Batches contain texts of similar length, the longest first.
        """
        assert self.encode_text is not None, "this model embeds no texts"
        row = {text: row for row, text in enumerate(sorted(set(texts), key=lambda text: (-len(text), text)))}
        different, parts = list(row), []
        for start in tqdm(range(0, len(different), self.batch_size), what, unit=" batches", disable=None):
            parts.append(self._run(self.encode_text, different[start : start + self.batch_size]))
        return Encoded.concatenate(parts).rows(torch.tensor([row[text] for text in texts]))

    def images(self, paths: Sequence[Path], what: str = "images") -> Images:
        """The embeddings of image files, in their order, in float32 on the CPU.

        Raises:
            UserError: none of them could be decoded.
        """
        assert self.encode_image is not None, "this model embeds no images"
        assert self.transform is not None, "images need preprocessing"
        workers = min(self.num_workers, len(paths))
        loader = DataLoader(ImageFiles(paths, self.transform), self.batch_size, num_workers=workers, collate_fn=list)
        images: list[ReadImage] = []
        parts: list[Encoded] = []
        for batch in tqdm(loader, what, unit=" batches", disable=None):
            pixels = [image.pixels for image in batch if image.pixels is not None]
            if pixels:
                parts.append(self._run(self.encode_image, torch.stack(pixels)))
            images += [image._replace(pixels=None) for image in batch]
        failed = {image.number: image.reason for image in images if image.reason}
        if not parts:
            number, reason = next(iter(failed.items()))
            raise UserError(f"none of the {len(paths)} images could be decoded; {paths[number]}: {reason}")
        index = [image.number for image in images if not image.reason]
        return Images(Encoded.concatenate(parts), index, failed, [image.digest for image in images])

    def _run(self, encode: Callable[[Any], Encoded], batch: Any) -> Encoded:
        dtype = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}[self.precision]
        with torch.no_grad(), torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            encoded: Encoded = encode(batch.to(self.device) if isinstance(batch, Tensor) else batch)
        kept = encoded if self.scorer.needs_tokens else encoded.without_tokens()
        return kept.map(lambda rows: rows.float().cpu() if rows.is_floating_point() else rows.cpu())


def module_embedder(module: RetrievalModule, device: str = "auto", **settings: Any) -> Embedder:
    """An embedder that uses a model of itr; `settings` are further attributes of `Embedder`.

    Raises:
        UserError: the model needs image features instead of pixels.
    """
    if module.backbone.image_field is not None:
        raise UserError(
            f"this model takes the field {module.backbone.image_field!r} instead of pixels, so it cannot embed image "
            "files; give shards with --data, and their features with --features"
        )
    where = torch.device(choose_device(device))
    module.to(where).eval()
    transform = EvaluationTransform(module.backbone.image_spec)
    return Embedder(where, module.encode_text, module.encode_image, transform, scorer=scorer_of(module), **settings)


class View(NamedTuple):
    """Embeddings [N, D] to search with: `uni` are made for search within a modality, `cross` are the pooled ones."""

    space: Literal["uni", "cross"]
    rows: Tensor


def views(encoded: Encoded, protocol: str, space: Space) -> dict[str, View]:
    """The embeddings that a protocol compares, by the prefix of its metrics.

    PROTOCOL is the prefix of the requested space, where `auto` means `uni` if the model has it and `cross` otherwise;
    `both` gives `uni` under PROTOCOL and `cross` under PROTOCOL_cross.

    Raises:
        UserError: `uni` is requested, but the model has no separate embeddings for search within a modality.
    """
    pooled = View("cross", encoded.pooled)
    if space == "cross" or (space == "auto" and encoded.unimodal is None):
        return {protocol: pooled}
    if encoded.unimodal is None:
        raise UserError(
            f"--space is {space}, but this model has no separate embeddings for search within a modality, as those of "
            "CUSA; give --space cross"
        )
    own = View("uni", encoded.unimodal)
    return {protocol: own} if space != "both" else {protocol: own, f"{protocol}_cross": pooled}
