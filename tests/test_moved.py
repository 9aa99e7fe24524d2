"""Old names of modules."""

from __future__ import annotations

import importlib
import sys

import pytest

from itr.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_a_module_that_has_moved_is_found_by_its_old_name(old):
    """It is the same module, so that classes of both names are equal."""
    sys.modules.pop(old, None)
    with pytest.warns(FutureWarning, match=f"{old} has moved: import {MOVED[old]}"):
        found = importlib.import_module(old)
    now = importlib.import_module(MOVED[old])
    assert vars(found)["__doc__"] == now.__doc__
    assert found is now
    assert now.__spec__ is not None
    assert now.__spec__.name == MOVED[old]


def test_other_names_are_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"itr\.data\.nothing"):
        importlib.import_module("itr.data.nothing")
