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

# Two test processes share two cores. The processes that they start inherit the number of threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# As the first command does, so that messages reach a test in the same way whether or not a command ran before.
_show_our_messages()
# A shell ignores SIGINT for tests run in the background, and processes started by the tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's real cache folder untouched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set of scenes in several shards, with varying numbers of captions."""
    folder = tmp_path_factory.mktemp("scenes")
    prepare_scenes(str(folder), train=44, val=13, test=17, captions=(2, 4), image_size=32, shard_size=9)
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """Data in a folder next to the repository."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the folder {folder.name} next to the repository, which does not exist")
    return folder


@pytest.fixture(scope="session")
def checkpoint(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint with heads for retrieval within a modality."""
    return save_checkpoint(tmp_path_factory.mktemp("cusa"), scenes, "--model.methods+=CUSA")


@pytest.fixture(scope="session")
def plain_checkpoint(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint without such heads."""
    return save_checkpoint(tmp_path_factory.mktemp("plain"), scenes)
