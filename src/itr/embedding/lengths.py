"""What files of embeddings say about the length of their embeddings."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

NORMALIZED = "normalized"
UNIT_TOLERANCE = 1e-4
NOT_NORMALIZED = (
    "these embeddings are not normalized: divide each by its length before you compare them by dot products"
)


def with_lengths(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a file of embeddings, with `normalized`; a line is printed if it is false."""
    unit = has_unit_length(arrays)
    if not unit:
        print(NOT_NORMALIZED)
    return {**arrays, NORMALIZED: np.array(unit)}


def has_unit_length(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether all embeddings `image` [N, D] and `text` [M, D], of those that are there, have unit length."""
    rows = [arrays[name] for name in ("image", "text") if name in arrays]
    return all(bool((np.abs(np.linalg.norm(part, axis=1) - 1) < UNIT_TOLERANCE).all()) for part in rows)
