"""The planted faults fit the source; `make mutations` runs the tests on each."""

from __future__ import annotations

from pathlib import Path

import pytest

from mutations.faults import FAULTS, Fault

SOURCE = Path(__file__).parents[2] / "src" / "itr"


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.what for fault in FAULTS])
def test_a_planted_fault_has_its_place(fault: Fault) -> None:
    """A fault whose text is gone would be planted nowhere."""
    assert (SOURCE / fault.file).read_text(encoding="utf-8").count(fault.right) == 1
    assert fault.wrong != fault.right


def test_there_are_at_least_thirty_faults() -> None:
    assert len({fault.what for fault in FAULTS}) == len(FAULTS) >= 30
