"""Embeddings in files, ours or anybody's, checked before they are scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from itr.errors import UserError
from itr.evaluation.gallery import Gallery
from itr.types import Encoded

KEYS = ("image", "text", "image_id", "caption_id", "caption_image_id")


def load_embeddings(path: Path) -> Gallery:
    """The gallery of an `.npz` or `.safetensors` with `image` [N, D], `text` [M, D] and the ids of their rows.

    `image_id` [N] and `caption_id` [M] are whole numbers, `caption_image_id` [M] the image of each caption.

    Raises:
        UserError: a key is missing, shapes or ids don't fit, or an embedding is not finite or has no length.
    """
    return gallery_of(_read(path), str(path))


def gallery_of(arrays: Mapping[str, Tensor], where: str) -> Gallery:
    """The gallery of arrays as `load_embeddings` takes them; `where` they are from is told in messages.

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
        raise UserError(f"{where}: caption_image_id must be {len(text_id)} whole numbers, one a caption")
    rows, columns = torch.argsort(image_id), torch.argsort(text_id)
    gallery = Gallery(
        bare(image[rows], _further(where, arrays, "image_unimodal", rows)),
        image_id[rows],
        bare(text[columns], _further(where, arrays, "text_unimodal", columns)),
        text_id[columns],
        owner.long()[columns],
    )
    try:
        gallery.own_image()
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    return gallery


def bare(rows: Tensor, unimodal: Tensor | None = None) -> Encoded:
    """Embeddings [N, D] without token-level features."""
    tokens = rows.new_zeros(len(rows), 0, rows.shape[1])
    return Encoded(rows, tokens, tokens[..., 0].bool(), unimodal)


def _further(where: str, arrays: Mapping[str, Tensor], name: str, order: Tensor) -> Tensor | None:
    if name not in arrays:
        return None
    rows = arrays[name]
    if rows.ndim != 2 or len(rows) != len(order) or not rows.is_floating_point():
        found = f"{list(rows.shape)} and type {rows.dtype}"
        raise UserError(f"{where}: {name} has shape {found}; [{len(order)}, width] is needed, or leave it out")
    return rows[order]


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with np.load(path, allow_pickle=False) as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays if arrays[key].dtype.kind in "fiu"}
    except Exception as error:  # safetensors and zipfile have error types of their own
        raise UserError(f"{path} can't be read as .npz or .safetensors: {error}") from None


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
        raise UserError(f"{where}: {ids_name} {int(twice[0])} stands twice ({len(twice)} such ids); ids must be unique")
    return rows, ids


def check_embeddings(rows: Tensor, name: Callable[[int], str]) -> None:
    """Refuse embeddings [N, D] without a direction; `name` says what row n is.

    Raises:
        UserError: some are not finite, or have length 0.
    """
    for bad, why in ((~rows.isfinite().all(dim=1), "is not finite"), ((rows == 0).all(dim=1), "is zero")):
        if bad.any():
            raise UserError(
                f"{name(int(bad.nonzero()[0]))} {why} ({int(bad.sum())} such rows); a figure would be wrong: look at "
                "the weights, or embed with --precision 32"
            )
