from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from itr.cli import _show_our_messages
from itr.data.sources.scenes import prepare_scenes
from tiny import save_checkpoint

# Two test processes share two cores. What they start inherits the number of threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# As the first command does it: messages reach a test by the same way whether another has run a command before or not.
_show_our_messages()
# A shell that runs the tests in the background has SIGINT ignored, and what is started here would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept for the user stays out of the real user's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set of scenes in several shards, with uneven numbers of captions."""
    folder = tmp_path_factory.mktemp("scenes")
    prepare_scenes(str(folder), train=44, val=13, test=17, captions=(2, 4), image_size=32, shard_size=9)
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """Data beside the repository that is not part of it."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the folder {folder.name} beside the repository, which is not there")
    return folder


@pytest.fixture(scope="session")
def checkpoint(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with heads for search within a modality."""
    return save_checkpoint(tmp_path_factory.mktemp("cusa"), scenes, "--model.methods+=CUSA")


@pytest.fixture(scope="session")
def plain_checkpoint(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model without."""
    return save_checkpoint(tmp_path_factory.mktemp("plain"), scenes)
