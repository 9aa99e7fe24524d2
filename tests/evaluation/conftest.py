from __future__ import annotations

from pathlib import Path

import pytest

from tiny import save_checkpoint


@pytest.fixture(scope="session")
def checkpoint(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with heads for search within a modality."""
    return save_checkpoint(tmp_path_factory.mktemp("cusa"), scenes, "--model.methods+=CUSA")


@pytest.fixture(scope="session")
def plain_checkpoint(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model without."""
    return save_checkpoint(tmp_path_factory.mktemp("plain"), scenes)
