"""Data that change while a run reads them: the run ends, names the file, and keeps its checkpoint."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from launching import ENOUGH
from training_runs import checkpoint, options, start, wait_for_text


def put(source: Path, target: Path) -> None:
    """Put another file in the place of a shard, as `itr prepare --overwrite` and `mv` do."""
    part = target.with_suffix(".part")
    shutil.copyfile(source, part)
    os.replace(part, target)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_shard_that_changes_under_a_run_ends_it(scenes, tmp_path, split):
    shards, folder, log = tmp_path / "shards", tmp_path / "run", tmp_path / "log"
    shutil.copytree(scenes, shards)
    slow = ["--trainer.callbacks+=training_runs.Slow", "--trainer.callbacks.seconds=2", "--trainer.callbacks.after=5"]
    run = start(options(shards, folder, "--data.num_workers=1", "--trainer.max_epochs=9", *slow), log)
    wait_for_text(log, "slow after step 5", run)
    tar = sorted((shards / split).glob("*.tar"))[0]
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    changed = tmp_path / "changed.tar"  # as long as before
    changed.write_bytes(data)
    put(changed, tar)
    assert run.wait(ENOUGH) == 1
    told = log.read_text()
    assert f"{tar.name} changed since the run began" in told
    assert "Traceback" not in told
    assert checkpoint(folder)["global_step"] >= 5
