"""Runs that are stopped by a signal, or killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from itr.cli import main
from itr.files.archives import fault
from launching import ENOUGH
from soak import differences, final
from training_runs import checkpoint, children, options, start, wait_for, wait_for_text

LONG = ["--checkpoint.every_steps=3", "--trainer.max_epochs=200"]
SIGNALS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 143}
OTHERS = (signal.SIGINT, signal.SIGUSR1)
PLACES = {
    "within an epoch": ("on_train_batch_end", 3, []),
    "after the last batch of an epoch": ("on_train_batch_end", 5, []),
    "within validation": ("on_validation_batch_start", 5, ["--data.eval_batch_size=4"]),
    "within validation in mid-epoch": ("on_validation_batch_start", 4, ["--trainer.val_check_interval=2"]),
    "after validation": ("on_validation_epoch_end", 5, []),
    "at the end of an epoch": ("on_train_epoch_end", 5, []),
    "with accumulated gradients": ("on_train_batch_end", 3, ["--trainer.accumulate_grad_batches=2"]),
    "with accumulation by epoch": (
        "on_train_batch_end", 1,
        ["--trainer.callbacks+=GradientAccumulationScheduler", "--trainer.callbacks.scheduling={0: 2, 1: 1}"],
    ),
    "with averaged weights": ("on_validation_batch_start", 5, ["--trainer.callbacks+=EMAWeightAveraging"]),
    "without validation": ("on_train_epoch_end", 5, ["--data.val_split=null"]),
    "by a number of steps": ("on_train_batch_end", 6, ["--trainer.max_epochs=-1", "--trainer.max_steps=10"]),
}  # fmt: skip


def stop_at(hook: str, step: int, signum: int = signal.SIGTERM) -> list[str]:
    here = [f"--trainer.callbacks.hook={hook}", f"--trainer.callbacks.step={step}"]
    return ["--trainer.callbacks+=training_runs.SignalAt", *here, f"--trainer.callbacks.signum={int(signum)}"]


@pytest.mark.parametrize(
    "place", [p if p == "with averaged weights" else pytest.param(p, marks=pytest.mark.slow) for p in PLACES]
)
def test_a_stopped_run_resumes_to_the_same_end(scenes, tmp_path, capsys, place):
    """Weights, optimizer, schedule, averages, random states, position and best score, to the bit."""
    hook, step, more = PLACES[place]
    more = ["--data.num_workers=0", "--trainer.max_epochs=2", "--trainer.logger=false", *more]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main(options(scenes, whole, *more)) == 0
    assert main(options(scenes, stopped, *more, *stop_at(hook, step))) == 143
    assert f"stopped after step {checkpoint(stopped)['global_step']}" in capsys.readouterr().err
    assert main(options(scenes, stopped, *more, "--ckpt_path=last")) == 0
    if "--data.val_split=null" in more:
        assert not differences(*(checkpoint(folder)["state_dict"] for folder in (whole, stopped)))
    else:
        assert not differences(final(whole), final(stopped))


@pytest.mark.parametrize("signum", [signal.SIGTERM, *(pytest.param(s, marks=pytest.mark.slow) for s in OTHERS)])
def test_signals_give_their_exit_status(scenes, tmp_path, capsys, signum):
    handlers = {known: signal.getsignal(known) for known in SIGNALS}
    more = ["--data.num_workers=0", "--trainer.logger=false", "--trainer.limit_val_batches=0"]
    where = stop_at("on_train_batch_start", 1, signum)
    assert main(options(scenes, tmp_path, *more, *where)) == SIGNALS[signum]
    assert checkpoint(tmp_path)["global_step"] == 2  # the step in progress was finished
    assert handlers == {known: signal.getsignal(known) for known in SIGNALS}
    assert "--ckpt_path last resumes from there" in capsys.readouterr().err


@pytest.mark.slow
def test_before_the_first_step_a_signal_ends_the_run_at_once(scenes, tmp_path, capsys):
    more = ["--data.num_workers=0", "--trainer.logger=false"]
    assert main(options(scenes, tmp_path, *more, *stop_at("on_fit_start", 0, signal.SIGINT))) == 130
    assert "stopped by SIGINT before there was anything to save" in capsys.readouterr().err
    assert not list((tmp_path / "checkpoints").glob("*.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("signum", SIGNALS, ids=lambda signum: signum.name)
def test_the_workers_of_the_loader_survive_a_signal_to_the_whole_group(scenes, tmp_path, signum):
    last, log = tmp_path / "checkpoints" / "last.ckpt", tmp_path / "log"
    process = start(options(scenes, tmp_path, *LONG, "--data.num_workers=2"), log)
    wait_for(last, process)
    os.killpg(process.pid, signum)
    assert process.wait(ENOUGH) == SIGNALS[signum]
    told = log.read_text()
    assert f"stopped after step {checkpoint(tmp_path)['global_step']}" in told
    assert "Traceback" not in told
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_a_process_that_ends_does_not_wait_for_workers_that_ignore_signals():
    """Like a process that is stopped while its loader starts, so that the loader is never shut down."""
    keeps_its_loader = """
import os
from torch.utils.data import DataLoader
from itr.data.loading.workers import ignore_signals
batches = iter(DataLoader([1, 2, 3], num_workers=1, worker_init_fn=ignore_signals, persistent_workers=True))
next(batches)
print(batches._workers[0].pid, flush=True)
batches._shutdown_workers = lambda: None
"""
    done = subprocess.run([sys.executable, "-c", keeps_its_loader], capture_output=True, text=True, timeout=ENOUGH)
    assert done.returncode == 0, done.stderr
    assert not Path(f"/proc/{done.stdout.strip()}").exists()


@pytest.mark.slow
def test_a_second_signal_ends_the_run_at_once(scenes, tmp_path):
    last, log = tmp_path / "checkpoints" / "last.ckpt", tmp_path / "log"
    slow = ["--trainer.callbacks+=training_runs.Slow", "--trainer.callbacks.seconds=60", "--trainer.callbacks.after=3"]
    process = start(options(scenes, tmp_path, *LONG, *slow), log)
    wait_for_text(log, "slow after step 3", process)
    process.send_signal(signal.SIGTERM)
    wait_for_text(log, "a second signal ends it at once", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert "received again: ended at once" in log.read_text()
    assert fault(last) == ""


@pytest.mark.slow
@pytest.mark.parametrize("heard_by", ["the first process", "the second process"])
def test_two_processes_stop_at_one_step_and_resume_to_the_same_end(scenes, tmp_path, heard_by):
    log = tmp_path / "log"
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=4", "--data.num_workers=0"]
    two += ["--trainer.max_epochs=8", "--trainer.logger=false", "--checkpoint.every_steps=3"]
    assert start(options(scenes, tmp_path / "whole", *two), log).wait(ENOUGH) == 0
    slow = ["--trainer.callbacks+=training_runs.Slow", "--trainer.callbacks.seconds=0.1"]
    process = start(options(scenes, tmp_path / "stopped", *two, *slow), log)
    wait_for(tmp_path / "stopped" / "checkpoints" / "last.ckpt", process)
    listener = process.pid if heard_by == "the first process" else children(process.pid)[0]
    os.kill(listener, signal.SIGTERM)
    assert process.wait(ENOUGH) == 143
    assert "stopped after step" in log.read_text()
    assert checkpoint(tmp_path / "stopped")["global_step"] < checkpoint(tmp_path / "whole")["global_step"]
    assert start(options(scenes, tmp_path / "stopped", *two, "--ckpt_path=last"), log).wait(ENOUGH) == 0
    assert not differences(final(tmp_path / "whole"), final(tmp_path / "stopped"))


@pytest.mark.slow
def test_slurm_requeues_the_job_and_the_same_command_resumes(scenes, tmp_path):
    """The environment and the signal of SLURM, with a program `scontrol` that records its arguments."""
    asked, log, folder = tmp_path / "asked", tmp_path / "log", tmp_path / "run"
    tool = tmp_path / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    tool.chmod(0o755)
    slurm = {
        "PATH": f"{tool.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "1",
        "SLURM_NODELIST": "localhost",
    }  # fmt: skip
    more = ["--checkpoint.every_steps=3", "--data.num_workers=0", "--trainer.max_epochs=30", "--trainer.logger=false"]
    process = start(options(scenes, folder, *more), log, **slurm)
    wait_for(folder / "checkpoints" / "last.ckpt", process)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(ENOUGH) == 143
    assert asked.read_text() == "requeue 77\n"
    reached = checkpoint(folder)["global_step"]
    assert 0 < reached < 150
    assert start(options(scenes, folder, *more), log, **slurm, SLURM_RESTART_COUNT="1").wait(ENOUGH) == 0
    assert checkpoint(folder)["global_step"] == 150
    assert start(options(scenes, tmp_path / "whole", *more), log).wait(ENOUGH) == 0
    assert not differences(final(tmp_path / "whole"), final(folder))


@pytest.mark.slow
def test_torchrun_restarts_from_the_last_checkpoint(scenes, tmp_path):
    """One of two processes is killed; torchrun starts both again, and they end as without the kill."""
    log = tmp_path / "log"
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=4", "--data.num_workers=0"]
    two += ["--trainer.max_epochs=8", "--trainer.logger=false", "--checkpoint.every_steps=3"]
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1")
    assert start(options(scenes, tmp_path / "whole", *two), log, torchrun).wait(ENOUGH) == 0
    slow = ["--trainer.callbacks+=training_runs.Slow", "--trainer.callbacks.seconds=0.1"]
    process = start(options(scenes, tmp_path / "killed", *two, *slow), log, torchrun)
    wait_for(tmp_path / "killed" / "checkpoints" / "last.ckpt", process)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    assert process.wait(ENOUGH) == 0
    assert "Restoring states from the checkpoint" in log.read_text()
    assert not differences(final(tmp_path / "whole"), final(tmp_path / "killed"))


@pytest.mark.slow
def test_a_full_disk_neither_stops_training_nor_harms_the_earlier_file(scenes, tmp_path):
    disk, log = tmp_path / "disk", tmp_path / "log"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        more = ["--trainer.max_epochs=4", "--trainer.log_every_n_steps=1", "--trainer.callbacks+=training_runs.Slow"]
        more += ["--trainer.callbacks.seconds=1", "--trainer.callbacks.after=5", "--data.num_workers=0"]
        process = start(options(scenes, disk / "run", *more), log)
        wait_for_text(log, "slow after step 5", process)
        subprocess.run(["dd", "if=/dev/zero", f"of={disk}/filler", "bs=1M"], capture_output=True)
        assert process.wait(ENOUGH) == 1  # training went on, but its end is not on the disk
        told = log.read_text()
        assert "could NOT write" in told
        assert "last.ckpt (No space left on device)" in told
        assert "could NOT write logs" in told
        assert (
            "after step 20, whose checkpoint could not be written: the checkpoint of step 5 is there to resume" in told
        )
        assert [fault(path) for path in sorted((disk / "run" / "checkpoints").glob("*.ckpt"))] == [""] * 2
        assert checkpoint(disk / "run")["global_step"] == 5
        (disk / "filler").unlink()
        log = tmp_path / "second log"
        process = start(options(scenes, disk / "run", *more, "--ckpt_path=last"), log)
        wait_for_text(log, "slow after step 5", process)
        subprocess.run(["dd", "if=/dev/zero", f"of={disk}/filler", "bs=1M"], capture_output=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(ENOUGH) == 143
        assert (
            "whose checkpoint could not be written: the checkpoint of step 5 is there to resume from" in log.read_text()
        )
        (disk / "filler").unlink()
        go_on = ["--trainer.max_epochs=2", "--data.num_workers=0", "--ckpt_path=last"]
        assert start(options(scenes, disk / "run", *go_on), log).wait(ENOUGH) == 0
        assert checkpoint(disk / "run")["global_step"] == 10
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_a_run_whose_output_does_not_fit_on_the_disk_continues(scenes, tmp_path):
    arguments = options(scenes, tmp_path, "--trainer.max_epochs=1", "--data.num_workers=0", "--trainer.logger=false")
    assert start(arguments, Path("/dev/full")).wait(ENOUGH) == 0
    assert checkpoint(tmp_path)["global_step"] == 5


@pytest.mark.slow
def test_a_damaged_last_checkpoint_is_replaced_by_the_newest_intact_one(scenes, tmp_path, caplog, capsys):
    more = ["--data.num_workers=0", "--trainer.logger=false"]
    assert main(options(scenes, tmp_path, *more, "--trainer.max_epochs=1")) == 0
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    assert main(options(scenes, tmp_path, *more, "--trainer.max_epochs=2", "--ckpt_path=last")) == 0
    assert "best.ckpt, the newest intact one, of step 5" in caplog.text
    assert checkpoint(tmp_path)["global_step"] == 10
    for path in (tmp_path / "checkpoints").glob("*.ckpt"):
        path.write_bytes(b"torn")
    assert main(options(scenes, tmp_path, *more, "--ckpt_path=last")) == 1
    assert "contains no other that is intact" in capsys.readouterr().err


@pytest.mark.slow
def test_auto_starts_or_resumes(scenes, tmp_path):
    more = ["--data.num_workers=0", "--trainer.logger=false", "--ckpt_path=auto"]
    for epochs in (1, 2):
        assert main(options(scenes, tmp_path, *more, f"--trainer.max_epochs={epochs}")) == 0
        assert checkpoint(tmp_path)["global_step"] == 5 * epochs


def test_impossible_checkpoint_settings_are_refused(scenes, tmp_path, capsys):
    assert main(options(scenes, tmp_path, "--checkpoint.every_minutes=-1")) == 1
    assert "checkpoint.every_minutes is -1.0; it must be 0 (off) or a positive number" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("changed", "told"), [("batch_size=4", "batch_size 8 -> 4"), ("seed=7", "seed 0 -> 7")])
@pytest.mark.parametrize("step", [3, 5], ids=["within an epoch", "after an epoch"])
def test_a_run_that_has_changed_reports_what_starts_again(scenes, tmp_path, caplog, changed, told, step):
    more = ["--data.num_workers=0", "--trainer.logger=false", "--trainer.max_epochs=2"]
    hook = "on_train_batch_end" if step == 3 else "on_train_epoch_end"
    assert main(options(scenes, tmp_path, *more, *stop_at(hook, step))) == 143
    reached = checkpoint(tmp_path)["global_step"]
    assert main(options(scenes, tmp_path, *more, f"--data.{changed}", "--ckpt_path=last")) == 0
    assert told in caplog.text
    anew = step == 3
    assert ("epoch 1 starts again" in caplog.text) == anew
    epoch = 11 if changed == "batch_size=4" else 5  # 44 images
    assert checkpoint(tmp_path)["global_step"] == reached + epoch * (2 if anew else 1)


@pytest.mark.slow
def test_a_run_of_two_processes_resumes_with_one(scenes, tmp_path):
    log = tmp_path / "log"
    more = ["--data.num_workers=0", "--trainer.logger=false", "--trainer.max_epochs=2", "--checkpoint.every_steps=2"]
    two = [*more, "--trainer.devices=2", "--trainer.strategy=ddp"]
    slow = ["--trainer.callbacks+=training_runs.Slow", "--trainer.callbacks.seconds=0.5"]
    process = start(options(scenes, tmp_path, *two, "--data.batch_size=2", *slow), log)
    wait_for(tmp_path / "checkpoints" / "last.ckpt", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(ENOUGH)
    reached = checkpoint(tmp_path)["global_step"]
    assert start(options(scenes, tmp_path, *more, "--data.batch_size=4", "--ckpt_path=last"), log).wait(ENOUGH) == 0
    told = log.read_text()
    assert "processes 2 -> 1" in told
    assert "epoch 1 starts again" in told
    assert "random numbers start from scratch" in told
    assert checkpoint(tmp_path)["global_step"] == reached + 2 * 11
