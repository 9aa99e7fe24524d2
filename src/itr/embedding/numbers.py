"""The arrays of a file of embeddings as numbers; ids may be written as texts of digits."""

from __future__ import annotations

import numpy as np

from itr.errors import UserError, shown

KEYS = ("image", "text", "image_id", "caption_id", "caption_image_id")
IDS = tuple(key for key in KEYS if key.endswith("_id"))
LONGEST_ID = 18  # digits of an id that is written as text


def numbers_of(key: str, found: np.ndarray) -> np.ndarray | None:
    """An array as numbers, also if it holds whole numbers written as texts; None if it is of no use here, as names are.

    Raises:
        UserError: it is needed as numbers, and is not.
    """
    if found.dtype.kind in "fiub" or key not in KEYS:
        return found if found.dtype.kind in "fiub" else None
    texts = found.reshape(-1).tolist()
    kinds = {"U": "texts", "S": "bytes", "O": "objects", "c": "complex numbers"}
    kind = kinds.get(found.dtype.kind, f"values of type {found.dtype}")
    if key not in IDS:
        raise UserError(f"{key} holds {kind}, such as {shown(texts[0] if texts else None)}; it needs numbers")
    odd = next((text for text in texts if not (isinstance(text, str) and text.isascii() and text.isdecimal())), None)
    if odd is not None or not texts:
        raise UserError(
            f"{key} holds {kind}, such as {shown(odd)}; it needs whole numbers: number them, and keep the texts"
        )
    if max(map(len, texts)) > LONGEST_ID:
        raise UserError(
            f"{key} holds a number that is too large: {shown(max(texts, key=len))}; ids have at most 63 bits"
        )
    return np.array([int(text) for text in texts], dtype=np.int64).reshape(found.shape)
