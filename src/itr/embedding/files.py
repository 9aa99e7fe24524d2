"""Files of embeddings, written by itr or by other programs, and their checks before scoring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from itr.embedding.numbers import KEYS, numbers_of
from itr.errors import UserError
from itr.evaluation.gallery import Gallery
from itr.evaluation.scoring import COSINE, CosineScorer, Scorer
from itr.types import Encoded

PARTS = ("id", "name", "tokens", "mask", "unimodal")  # image_... and text_... that are not further embeddings
SCORED_BY = "scored_by"


@dataclass
class StoredEmbeddings:
    """The contents of a file of embeddings.

    Attributes:
        arrays: its arrays by key, see `load_embeddings`.
        scored_by: the name of the scorer that its pairs need; cosine if the file names none.
        where: the file, for messages.
    """

    arrays: Mapping[str, Tensor]
    scored_by: str
    where: str

    def gallery(self, scorer: Scorer | None = None) -> Gallery:
        """The gallery, scored as the file requires.

        Args:
            scorer: the scorer of the model; None without a model.

        Raises:
            UserError: the embeddings need another scorer, or what the scorer needs is missing; or as `load_embeddings`.
        """
        scorer = scorer or CosineScorer()
        if scorer.name != self.scored_by:
            raise UserError(
                f"the embeddings in {self.where} are scored by {self.scored_by}, not by {scorer.name}: metrics "
                "with another scorer would be wrong. Give their checkpoint with --ckpt_path, or embed again"
            )
        if scorer.needs_tokens and not {"image_tokens", "image_mask", "text_tokens", "text_mask"} <= set(self.arrays):
            raise UserError(
                f"{self.where} has no token-level features (image_tokens, text_tokens and their masks), and its model "
                "scores pairs by them; embed again with `itr embed`"
            )
        return gallery_of(self.arrays, self.where, scorer)


def load_embeddings(path: Path, scorer: Scorer | None = None) -> Gallery:
    """The gallery of an `.npz` or `.safetensors` with `image` [N, D], `text` [M, D] and the ids of their rows.

    `image_id` [N] and `caption_id` [M] are integers, `caption_image_id` [M] the image of each caption. `scored_by` is
    the name of the scorer; without it, pairs are scored by cosine. A safetensors file has it in its metadata.

    Raises:
        UserError: a key is missing, shapes or ids do not fit, an embedding is not finite or is zero, or the file needs
            another scorer.
    """
    return read_embeddings(path).gallery(scorer)


def gallery_of(arrays: Mapping[str, Tensor], where: str, scorer: Scorer | None = None) -> Gallery:
    """The gallery of arrays with the keys of `load_embeddings`; `where` is their source, for messages.

    Raises:
        UserError: as `load_embeddings`.
    """
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        found = ", ".join(arrays) or "nothing"
        raise UserError(f"{where} lacks {', '.join(missing)}; it holds {found}. `itr embed --data` writes all of them")
    image, image_id = _rows(where, arrays, "image", "image_id")
    text, text_id = _rows(where, arrays, "text", "caption_id")
    if image.shape[1] != text.shape[1]:
        raise UserError(f"{where}: image has width {image.shape[1]} and text {text.shape[1]}; one space is needed")
    owner = arrays["caption_image_id"]
    if owner.shape != text_id.shape or owner.is_floating_point():
        raise UserError(f"{where}: caption_image_id must be {len(text_id)} whole numbers, one for each caption")
    rows, columns = torch.argsort(image_id), torch.argsort(text_id)
    gallery = Gallery(
        _encoded(where, arrays, "image", rows),
        image_id[rows],
        _encoded(where, arrays, "text", columns),
        text_id[columns],
        owner.long()[columns],
        scorer or CosineScorer(),
        *_samples(where, arrays, rows),
    )
    try:
        gallery.own_image()
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    return gallery


def _samples(where: str, arrays: Mapping[str, Tensor], order: Tensor) -> tuple[Tensor | None, int]:
    """Which images have the same content, and the number of samples, see `Gallery.arrays`."""
    same, number = arrays.get("image_same_as"), arrays.get("num_samples")
    if same is not None and (same.shape != order.shape or same.is_floating_point()):
        raise UserError(f"{where}: image_same_as must be {len(order)} whole numbers, one for each image; or remove it")
    if number is not None and (number.numel() != 1 or int(number) < len(order)):
        raise UserError(f"{where}: num_samples must be {len(order)} or more; or remove it")
    return None if same is None else same.long()[order], 0 if number is None else int(number)


def pooled_only(rows: Tensor, unimodal: Tensor | None = None) -> Encoded:
    """Embeddings [N, D] without token-level features."""
    tokens = rows.new_zeros(len(rows), 0, rows.shape[1])
    return Encoded(rows, tokens, tokens[..., 0].bool(), unimodal)


def _encoded(where: str, arrays: Mapping[str, Tensor], side: str, order: Tensor) -> Encoded:
    """One modality with all its embeddings, in the order of its ids."""
    found = pooled_only(arrays[side][order], _further(where, arrays, f"{side}_unimodal", order, "[{}, width]"))
    prefix = f"{side}_"
    for key in arrays:
        name = key.removeprefix(prefix)
        if key.startswith(prefix) and name not in PARTS and arrays[key].is_floating_point():
            vectors = _further(where, arrays, key, order, "[{}, ...]")
            found.extra |= {} if vectors is None else {name: vectors}
    tokens = _further(where, arrays, f"{side}_tokens", order, "[{}, tokens, width]")
    if tokens is None:
        return found
    mask = arrays.get(f"{side}_mask")
    if mask is None or mask.shape != tokens.shape[:2] or mask.dtype != torch.bool:
        raise UserError(f"{where}: {side}_mask must be bool with shape {list(tokens.shape[:2])}, as {side}_tokens has")
    return found.replace(tokens=tokens, mask=mask[order])


def _further(where: str, arrays: Mapping[str, Tensor], name: str, order: Tensor, shape: str) -> Tensor | None:
    if name not in arrays:
        return None
    rows, ndim = arrays[name], shape.count(",") + 1
    fits = rows.ndim >= ndim if "..." in shape else rows.ndim == ndim
    if not fits or len(rows) != len(order) or not rows.is_floating_point():
        found = f"{list(rows.shape)} and type {rows.dtype}"
        raise UserError(f"{where}: {name} has shape {found}; {shape.format(len(order))} is needed, or remove {name}")
    return rows[order]


def read_embeddings(path: Path) -> StoredEmbeddings:
    """The contents of an `.npz` or `.safetensors` file of embeddings, not yet checked.

    Raises:
        UserError: the file is missing or damaged.
    """
    if not path.is_file():
        raise UserError(f"the file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "pt") as stored:
                arrays = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118  it is not a dictionary
                return StoredEmbeddings(arrays, (stored.metadata() or {}).get(SCORED_BY, COSINE), str(path))
        with np.load(path, allow_pickle=False) as kept:
            found = {key: kept[key] for key in kept}
        arrays = {
            key: torch.from_numpy(rows) for key, value in found.items() if (rows := numbers_of(key, value)) is not None
        }
        return StoredEmbeddings(arrays, str(found.get(SCORED_BY, COSINE)), str(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # safetensors and zipfile have their own error types
        raise UserError(f"could not read {path} as .npz or .safetensors: {error}") from None


def _rows(where: str, arrays: Mapping[str, Tensor], name: str, ids_name: str) -> tuple[Tensor, Tensor]:
    rows, ids = arrays[name], arrays[ids_name]
    if rows.ndim != 2 or not len(rows) or not rows.is_floating_point():
        raise UserError(f"{where}: {name} has shape {list(rows.shape)} and type {rows.dtype}; [rows, width] is needed")
    if ids.shape != rows.shape[:1] or ids.is_floating_point():
        raise UserError(f"{where}: {ids_name} must be {len(rows)} whole numbers, one for each row of {name}")
    ids = ids.long()
    check_embeddings(rows, lambda row: f"{where}: {name} of id {int(ids[row])}")
    unique, counts = ids.unique(return_counts=True)
    if len(unique) < len(ids):
        twice = unique[counts > 1]
        raise UserError(f"{where}: {ids_name} {int(twice[0])} appears twice ({len(twice)} such ids); make ids unique")
    return rows, ids


def check_gallery(gallery: Gallery, where: str) -> None:
    """Refuse a gallery with embeddings that have no direction, such as those of a faulty model.

    Raises:
        UserError: some are not finite, or are zero.
    """
    for name, encoded, ids in (
        ("image", gallery.image, gallery.image_id),
        ("caption", gallery.text, gallery.text_id),
    ):
        check_embeddings(encoded.pooled, partial(_named_row, where, name, ids))


def _named_row(where: str, name: str, ids: Tensor, row: int) -> str:
    return f"{where}: the embedding of the {name} of id {int(ids[row])}"


def check_embeddings(rows: Tensor, name: Callable[[int], str]) -> None:
    """Refuse embeddings [N, D] without a direction; `name` describes row n, for messages.

    Raises:
        UserError: some are not finite, or are zero.
    """
    for bad, why in ((~rows.isfinite().all(dim=1), "is not finite"), ((rows == 0).all(dim=1), "is zero")):
        if bad.any():
            raise UserError(
                f"{name(int(bad.nonzero()[0]))} {why} ({int(bad.sum())} such rows), so metrics would be wrong: "
                "check the weights, or embed with --precision 32"
            )
