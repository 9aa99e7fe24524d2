"""Compare runs over the same queries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from itr.evaluation.bootstrap import Difference, paired_bootstrap
from itr.report.content.measure import Measured

COMPARED = [f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]


@dataclass
class Comparison:
    """A run against the first one: differences in percentage points by metric, or why they cannot be compared."""

    name: str
    differences: dict[str, Difference]
    reason: str = ""


def compare(base: Measured, other: Measured, name: str) -> Comparison:
    """Bootstrap the differences of the recalls and of their sum, `other` minus `base`."""
    same = (np.array_equal(getattr(base, ids), getattr(other, ids)) for ids in ("image_id", "text_id", "own_image"))
    if not all(same):
        return Comparison(name, {}, "not comparable: it was evaluated on different images or captions")
    (first, counts), (second, _) = recall_sums_by_image(base), recall_sums_by_image(other)
    found = paired_bootstrap(first, second, counts, total=True)
    return Comparison(name, dict(zip([*COMPARED, "rsum"], found, strict=True)))


def recall_sums_by_image(measured: Measured) -> tuple[np.ndarray, np.ndarray]:
    """Contribution of each image to the six recalls in percent, and the number of its queries, each [N, 6]."""
    number = len(measured.image_id)
    rows = {"i2t": np.unique(measured.own_image), "t2i": measured.own_image}
    sums, counts = [], []
    for way, ranks in measured.ranks.items():
        for k in (1, 5, 10):
            found = 100.0 * (ranks.numpy() < k)
            sums.append(np.bincount(rows[way], weights=found, minlength=number))
            counts.append(np.bincount(rows[way], minlength=number))
    return np.stack(sums, axis=1), np.stack(counts, axis=1)
