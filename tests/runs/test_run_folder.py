"""A run folder: one training at a time, a config that the next command may use, and nothing of an unfinished run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import yaml
from jsonargparse import ArgumentParser

from itr.cli import main
from itr.errors import UserError
from itr.runs.callbacks import SaveConfig
from itr.runs.checkpoints.resume import find_checkpoint
from itr.runs.run_folder import FolderLock, check_new_run
from launching import ENOUGH, Run, fit, torchrun
from training_runs import checkpoint, options, start, wait_for, wait_for_text

QUICK = ["--data.num_workers=0", "--trainer.max_epochs=1"]
HOLDER = """
import os, sys, time
from pathlib import Path
from itr.files.locks import locked
with locked(Path(sys.argv[1]) / ".run.lock", wait=False):
    if not os.fork():  # as a loader's worker is started, which outlives a killed run for some seconds
        print("held", flush=True)  # by the forked process: only now has it left the lock to its parent
    time.sleep(60)
"""


def test_a_second_training_is_refused_by_name_and_a_killed_one_does_not_block(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, start_new_session=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError) as refused:
            FolderLock().hold(tmp_path)
        who = (
            rf"another `itr fit` is training in {tmp_path} \(process {holder.pid} on \S+, since \d{{4}}-[-\d: ]+ UTC\)"
        )
        assert re.match(who, str(refused.value))
        holder.kill()
        holder.wait()
        lock = FolderLock()
        lock.hold(tmp_path)  # although the file is still there, and a process that the killed one forked
        with pytest.raises(UserError, match=f"process {os.getpid()} on"):
            FolderLock().hold(tmp_path)
        lock.release()
        FolderLock().hold(tmp_path)
    finally:
        holder.stdout.close()
        os.killpg(holder.pid, signal.SIGKILL)


def test_a_run_is_not_mixed_with_another(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    check_new_run(tmp_path, resumes=False, overwrite=False, checkpoints=True)
    (tmp_path / "checkpoints" / "best.ckpt").touch()
    with pytest.raises(UserError, match="already holds a run"):
        check_new_run(tmp_path, resumes=False, overwrite=False, checkpoints=True)
    check_new_run(tmp_path, resumes=True, overwrite=False, checkpoints=True)
    check_new_run(tmp_path, resumes=False, overwrite=True, checkpoints=True)
    with pytest.raises(UserError, match="they would not be those of this run"):
        check_new_run(tmp_path, resumes=True, overwrite=True, checkpoints=False)


@pytest.mark.parametrize("trace", ["checkpoints", "logs", "config.yaml"])
def test_a_run_without_its_best_checkpoint_is_not_measured(tmp_path, trace):
    parser = ArgumentParser()
    parser.add_argument("--ckpt_path")
    parser.add_argument("--trainer.default_root_dir", default=str(tmp_path))
    settings = parser.parse_args([])
    assert find_checkpoint(settings, "test") is None  # there is no run, but perhaps a pretrained model
    (tmp_path / trace).mkdir()
    with pytest.raises(UserError, match=r"has no best\.ckpt to measure: .*checkpoints holds no checkpoint"):
        find_checkpoint(settings, "test")
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(UserError, match=r"checkpoints holds last\.ckpt; give --ckpt_path"):
        find_checkpoint(settings, "test")


@pytest.mark.parametrize("resumed", [True, False])
def test_the_config_of_a_run_has_no_options_of_one_command(tmp_path, resumed):
    parser = ArgumentParser()
    for option in ("--ckpt_path", "--weights_only", "--seed", "--trainer.max_time"):
        parser.add_argument(option)
    parser.add_argument("--overwrite", type=bool, default=False)
    given = ["--overwrite=true", "--weights_only=true", "--seed=3", "--trainer.max_time=00:02:00:00"]
    given += ["--ckpt_path=a.ckpt"] if resumed else []
    trainer = pl.Trainer(accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_checkpointing=False)
    SaveConfig(parser, parser.parse_args(given)).setup(trainer, pl.LightningModule(), "fit")
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    limit = None if resumed else "00:02:00:00"  # that of a resumed run may be for the rest of a job
    lasting = {"seed": "3", "trainer": {"max_time": limit}}
    assert saved == {"ckpt_path": None, "weights_only": None, "overwrite": False, **lasting}


@pytest.mark.slow
def test_of_two_runs_in_one_folder_the_second_is_refused_and_the_first_goes_on(scenes, tmp_path):
    folder, slow = tmp_path / "run", ["--trainer.callbacks+=training_runs.Slow", "--trainer.callbacks.seconds=8"]
    more = ["--data.num_workers=1", "--trainer.max_epochs=999", *slow, "--trainer.callbacks.after=5"]
    first = start(options(scenes, folder, *more), tmp_path / "one")
    try:
        wait_for(folder / "checkpoints" / "last.ckpt", first)
        for number, more in enumerate(([], ["--ckpt_path=last"], ["--overwrite=true"])):
            log = tmp_path / f"two {number}"
            assert start(options(scenes, folder, *QUICK, *more), log).wait(ENOUGH) == 1
            assert f"another `itr fit` is training in {folder} (process {first.pid} on" in log.read_text()
        measured = [f"--data.root={scenes}", f"--trainer.default_root_dir={folder}", "--trainer.accelerator=cpu"]
        assert main(["test", *measured, "--ckpt_path=last", "--data.num_workers=0"]) == 0
        first.terminate()
        assert first.wait(ENOUGH) == 143
        step = checkpoint(folder)["global_step"]
        assert f"stopped after step {step}; --ckpt_path last resumes" in (tmp_path / "one").read_text()
    finally:
        first.kill()
        first.wait()


@pytest.mark.slow
def test_two_runs_that_start_together_do_not_share_a_folder(scenes, tmp_path):
    """Whichever is first trains; the other is refused by the lock, or because the first has already ended."""
    logs = [tmp_path / "one", tmp_path / "two"]
    runs = [start(options(scenes, tmp_path / "run", *QUICK), log) for log in logs]
    assert sorted(run.wait(ENOUGH) for run in runs) == [0, 1]
    assert any(words in log.read_text() for log in logs for words in ("another `itr fit`", "already holds a run"))
    assert checkpoint(tmp_path / "run")["global_step"] == 5


@pytest.mark.slow
def test_a_run_that_is_killed_with_workers_resumes_at_once(scenes, tmp_path):
    folder, slow = tmp_path / "run", ["--trainer.callbacks+=training_runs.Slow", "--trainer.callbacks.seconds=1"]
    more = ["--data.num_workers=2", "--trainer.max_epochs=2"]
    killed = start(options(scenes, folder, *more, *slow), tmp_path / "log")
    wait_for_text(tmp_path / "log", "slow after step 6", killed)
    killed.kill()  # not its workers, which notice it later
    killed.wait()
    assert main(options(scenes, folder, *more, "--ckpt_path=last")) == 0
    assert checkpoint(folder)["global_step"] == 10


@pytest.mark.slow
@pytest.mark.parametrize("torch", [False, True], ids=["lightning", "torchrun"])
def test_several_processes_hold_the_folder_once(scenes, tmp_path, torch):
    two = ["--trainer.devices=2", "--trainer.max_epochs=1"]
    with Run(tmp_path / "log") as run:
        command = fit(scenes, tmp_path / "run", *two)
        run.start([*(torchrun("--nproc_per_node=2", f"--master_port={run.port}") if torch else []), *command])
        assert run.statuses(ENOUGH) == [0], run.said()[-3000:]
    assert checkpoint(tmp_path / "run")["global_step"] == 5


@pytest.mark.slow
def test_a_resumed_run_is_tested_on_the_same_file_as_a_fresh_one_and_reports_when_nothing_is_left(
    scenes, tmp_path, capsys, caplog
):
    assert main(options(scenes, tmp_path, *QUICK)) == 0
    assert main(options(scenes, tmp_path, *QUICK, "--trainer.max_epochs=2", "--ckpt_path=last")) == 0
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (saved["ckpt_path"], saved["overwrite"], saved["trainer"]["max_epochs"]) == (None, False, 2)
    caplog.clear()
    assert main(["test", f"--config={tmp_path / 'config.yaml'}"]) == 0
    assert f"no --ckpt_path given: using {tmp_path / 'checkpoints' / 'best.ckpt'}" in caplog.text
    capsys.readouterr()
    assert main(options(scenes, tmp_path, *QUICK, "--trainer.max_epochs=2", "--ckpt_path=last")) == 0
    assert "nothing was left to train: " in (told := capsys.readouterr().out)
    assert "has done 2 epochs (10 steps); trainer.max_epochs is 2" in told


@pytest.mark.slow
def test_a_disk_that_takes_no_checkpoint_fails_the_run_and_its_evaluation(scenes, tmp_path):
    small = ["bash", "-c", 'ulimit -f 60; exec "$0" "$@"', sys.executable, "-m", "itr"]
    done = subprocess.run([*small, *options(scenes, tmp_path / "run", *QUICK)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "no checkpoint is there to resume from" in done.stderr
    assert not list(Path(tmp_path, "run").rglob("*.ckpt"))
    for verb in ("test", "validate", "predict"):
        assert main([verb, f"--config={tmp_path / 'run' / 'config.yaml'}"]) == 1
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert not (tmp_path / "run" / "embeddings.npz").exists()
