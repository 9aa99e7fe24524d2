"""Running out of memory for real, by a limit on the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launching import ENOUGH
from tiny import TINY_VSE

# What the program needs to start is known only once it has; the limit is that and so many MiB.
LIMITED = """
import re, resource, sys
import itr.runs.command
from itr.cli import main
has = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, [has + (int(sys.argv[1]) << 20)] * 2)
sys.exit(main(sys.argv[2:]))
"""


def run(mebibytes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIMITED, str(mebibytes), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=ENOUGH)


def training(folder: Path, shards: Path) -> list[str]:
    where = [f"--data.root={shards}", f"--trainer.default_root_dir={folder}", "--data.val_split=null"]
    fast = ["--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    large = ["--model.backbone.image_size=512", "--data.batch_size=8", "--trainer.limit_train_batches=1"]
    return ["fit", *where, *fast, *large, *TINY_VSE]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_running_out_of_memory_in_a_step_names_remedies_and_harms_no_checkpoint(scenes, tmp_path):
    done = run(4096, *training(tmp_path, scenes), "--trainer.max_epochs=1")
    assert done.returncode == 0, done.stderr
    last = tmp_path / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    done = run(100, *training(tmp_path, scenes), "--trainer.max_epochs=2", "--ckpt_path=last")
    assert done.returncode == 1, done.stderr
    assert "itr: error: out of memory" in done.stderr
    for lever in ("--data.batch_size", "gradient_checkpointing", "gradient_cache", "--trainer.precision"):
        assert lever in done.stderr
    assert "Traceback" not in done.stderr
    assert [file.name for file in last.parent.iterdir()] == ["last.ckpt"]
    assert last.read_bytes() == before
    done = run(4096, *training(tmp_path, scenes), "--trainer.max_epochs=2", "--ckpt_path=last")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_model_that_does_not_fit_into_memory_is_reported(scenes, tmp_path):
    done = run(1024, *training(tmp_path, scenes), "--model.backbone.dim=100000000")
    assert done.returncode == 1
    assert "out of memory" in done.stderr
    assert "you tried to allocate 12800000000 bytes" in done.stderr
