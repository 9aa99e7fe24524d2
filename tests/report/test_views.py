"""Ranks of captions by image, against loops."""

from __future__ import annotations

import statistics

import pytest
import torch

from itr.report.content.views import ranks_by_image


def test_uneven_numbers_of_captions_against_a_loop():
    draws = torch.Generator().manual_seed(0)
    own_image = torch.randint(9, (40,), generator=draws)
    own_image[own_image == 4] = 5  # an image without captions
    ranks = torch.randint(30, (40,), generator=draws)
    found = ranks_by_image(ranks, own_image)
    groups = {row: [int(r) for r, o in zip(ranks, own_image, strict=True) if o == row] for row in range(9)}
    groups = {row: group for row, group in groups.items() if group}
    assert found.row.tolist() == list(groups)
    assert found.number.tolist() == [len(group) for group in groups.values()]
    assert found.best.tolist() == [min(group) for group in groups.values()]
    assert found.median.tolist() == [statistics.median(group) for group in groups.values()]
    assert found.worst.tolist() == [max(group) for group in groups.values()]
    for k in (1, 5, 10, 30):
        every = sum(all(rank < k for rank in group) for group in groups.values())
        none = sum(all(rank >= k for rank in group) for group in groups.values())
        shares = {"all": every, "some": len(groups) - every - none, "none": none}
        assert found.found(k) == pytest.approx({name: 100 * n / len(groups) for name, n in shares.items()})
