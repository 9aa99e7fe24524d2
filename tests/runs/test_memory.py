"""Running out of memory, file handles and shared memory for real, by limits on the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from itr.errors import UserError
from itr.runs.memory import memory_errors
from launching import ENOUGH
from tiny import TINY_VSE
from training_runs import children, environment, options, start, wait_for_text


def run(arguments: list[str], prefix: str = "") -> tuple[int, str]:
    """The exit status of `itr` and what it said, after a command of the shell such as `ulimit`."""
    command = ["bash", "-c", f'{prefix} exec "$0" "$@"', sys.executable, "-m", "itr", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ENOUGH, env=environment())
    return done.returncode, done.stderr


def training(folder: Path, shards: Path) -> list[str]:
    where = [f"--data.root={shards}", f"--trainer.default_root_dir={folder}", "--data.val_split=null"]
    fast = ["--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    large = ["--model.backbone.image_size=512", "--data.batch_size=8", "--trainer.limit_train_batches=1"]
    return ["fit", *where, *fast, *large, *TINY_VSE]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_running_out_of_memory_in_a_step_names_remedies_and_harms_no_checkpoint(scenes, tmp_path):
    status, said = run([*training(tmp_path, scenes), "--trainer.max_epochs=1"])
    assert status == 0, said
    last = tmp_path / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    limited = ["--trainer.callbacks+=training_runs.LimitsMemory", "--trainer.callbacks.mebibytes=32"]
    more = [*training(tmp_path, scenes), "--trainer.max_epochs=2", "--ckpt_path=last"]
    status, said = run([*more, *limited])
    assert status == 1, said
    assert "itr: error: out of memory" in said
    for lever in ("--data.batch_size", "gradient_checkpointing", "gradient_cache", "--trainer.precision"):
        assert lever in said
    assert "Traceback" not in said
    assert [file.name for file in last.parent.iterdir()] == ["last.ckpt"]
    assert last.read_bytes() == before
    status, said = run(more)
    assert status == 0, said


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_model_that_does_not_fit_into_memory_is_reported(scenes, tmp_path):
    status, said = run([*training(tmp_path, scenes), "--model.backbone.dim=100000000"], "ulimit -v 12000000;")
    assert status == 1
    assert "out of memory" in said
    assert "you tried to allocate 12800000000 bytes" in said


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(24, "Too many open files", "/a"), "too many open files .*: raise the limit by `ulimit -n 4096`"),
        (RuntimeError("received 0 items of ancdata"), "too many open files"),
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2>: No space"), "/dev/shm, which has"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "data worker 7 was killed by SIGKILL",
        ),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It"), "ended by SIGBUS, .*/dev/shm"),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "data worker 7, 8 ended unexpectedly"),
        (RuntimeError("CUDA out of memory. Tried"), "^out of memory: CUDA"),
        (MemoryError(), "^out of memory: MemoryError"),
    ],
)
def test_the_cause_is_named_and_not_guessed(error, message):
    with pytest.raises(UserError, match=message) as refused, memory_errors("fit"):
        raise error
    assert ("out of memory" in str(refused.value)) == ("out of memory" in message)


@pytest.mark.parametrize("error", [OSError(2, "No such file"), RuntimeError("a bug"), UserError("too many open files")])
def test_other_errors_are_not_reworded(error):
    with pytest.raises(type(error)) as raised, memory_errors("fit"):
        raise error
    assert raised.value is error


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limits are Linux's")
@pytest.mark.parametrize("files", [20, 32, 40])
def test_too_few_file_handles_are_reported_and_no_batch_is_lost_without_a_word(scenes, tmp_path, files):
    arguments = options(scenes, tmp_path, "--data.num_workers=2", "--trainer.max_epochs=1")
    status, said = run(arguments, f"ulimit -n {files};")
    assert status == 1
    assert "ulimit -n 4096" in next(line for line in said.splitlines() if line.startswith("itr: error"))


@pytest.mark.slow
@pytest.mark.parametrize("size", ["64k", "1500k"])
def test_too_little_shared_memory_is_reported(scenes, tmp_path, size):
    mounted = ["unshare", "-m", "bash", "-c", f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$0" "$@"']
    if subprocess.run([*mounted, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    large = ["--data.num_workers=2", "--trainer.max_epochs=1", "--model.backbone.image_size=512"]
    command = [*mounted, sys.executable, "-m", "itr", *options(scenes, tmp_path, *large)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ENOUGH)
    assert done.returncode == 1
    assert "/dev/shm" in next(line for line in done.stderr.splitlines() if line.startswith("itr: error"))


@pytest.mark.slow
def test_a_killed_data_worker_is_not_called_out_of_memory(scenes, tmp_path):
    slow = ["--trainer.callbacks+=training_runs.Slow", "--trainer.callbacks.seconds=1", "--data.num_workers=2"]
    run = start(options(scenes, tmp_path / "run", *slow), log := tmp_path / "log")
    wait_for_text(log, "slow after step 2", run)
    for child in children(run.pid):
        os.kill(child, signal.SIGKILL)
    assert run.wait(ENOUGH) == 1
    assert "was killed by SIGKILL from outside" in log.read_text()
    assert "out of memory" not in log.read_text()
