"""The short form of `tests/helpers/soak.py`; docs/reliability.md has what the long one found."""

from __future__ import annotations

import pytest

from soak import soak


@pytest.mark.slow
def test_a_run_that_is_killed_repeatedly_ends_like_an_uninterrupted_one(tmp_path):
    found = soak(tmp_path, kills=6, seed=1, epochs=12, longest=14, images=80)
    assert found["wrong"] == []
    assert found["kills"] == 6
