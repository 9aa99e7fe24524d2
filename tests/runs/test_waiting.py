"""What training logs about its data: how long it waited for them, and what it skipped."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from itr.cli import main
from itr.data.shards.writer import Record, write_split
from itr.runs.waiting import Stalls
from launching import ENOUGH
from tiny import TINY_VSE

HINT = "of the epoch was spent waiting for data"


def fit(folder: Path, shards: Path, *options: str) -> int:
    where = [f"--data.root={shards}", f"--trainer.default_root_dir={folder}", "--data.val_split=null"]
    fast = ["--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    few = ["--data.batch_size=4", "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1"]
    return main(["fit", *where, *fast, *TINY_VSE, *few, *options])


def logged(folder: Path, name: str) -> list[float]:
    (path,) = folder.rglob("metrics.csv")
    with path.open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def write_images(folder: Path, size: int, cut: set[int]) -> Path:
    def record(number: int) -> Record:
        buffer = io.BytesIO()
        pixels = np.random.default_rng(number).integers(256, size=(size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG")
        return Record(buffer.getvalue()[: 100 if number in cut else None], "jpg", [f"image {number}"], f"{number}.jpg")

    write_split((record(number) for number in range(12)), folder, "train", 6)
    return folder


@pytest.mark.slow
def test_an_epoch_of_waiting_for_data_gives_advice_once(tmp_path, capsys):
    assert fit(tmp_path / "run", write_images(tmp_path, 3000, set())) == 0
    said = capsys.readouterr().err
    assert said.count(HINT) == 1
    assert "--data.num_workers (now 0; there are" in said
    assert "--resize 256" in said
    waits = logged(tmp_path / "run", "train/data_wait")
    assert len(waits) == 6
    assert min(waits) > 0.01


@pytest.mark.slow
def test_an_epoch_without_waiting_gives_no_advice(scenes, tmp_path, capsys):
    slow = [
        "--trainer.callbacks+=training_runs.Slow",
        "--trainer.callbacks.seconds=0.1",
    ]  # regardless of the load of the machine
    assert fit(tmp_path, scenes, *slow) == 0
    assert HINT not in capsys.readouterr().err
    assert all(0 < wait < 1 for wait in logged(tmp_path, "train/data_wait"))


@pytest.mark.slow
def test_skipped_images_appear_in_the_curves(tmp_path):
    assert fit(tmp_path / "run", write_images(tmp_path, 32, {2, 7})) == 0
    skipped = logged(tmp_path / "run", "train/skipped")
    assert len(skipped) == 6  # counted from 0 in each epoch
    assert skipped[2] == skipped[5] == 2
    assert logged(tmp_path / "run", "train/bad_shards") == [0] * 6


@pytest.mark.slow
def test_metrics_between_logging_steps_are_neither_computed_nor_logged(scenes, tmp_path):
    assert fit(tmp_path, scenes, "--trainer.log_every_n_steps=5") == 0
    for name in ("loss", "grad_norm", "data_wait", "skipped"):
        assert len(logged(tmp_path, f"train/{name}")) == 4  # of 22 steps


@pytest.mark.slow
def test_skipped_images_are_counted_over_all_processes(tmp_path):
    shards = write_images(tmp_path, 32, {2, 7, 8})
    where = [f"--data.root={shards}", f"--trainer.default_root_dir={tmp_path / 'run'}", "--data.val_split=null"]
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu", "--data.num_workers=0"]
    few = ["--data.batch_size=2", "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1"]
    command = [sys.executable, "-m", "itr", "fit", *where, *two, *few, *TINY_VSE, "--data.shuffle_buffer=1"]
    subprocess.run(command, check=True, timeout=ENOUGH)
    assert logged(tmp_path / "run", "train/skipped")[-1] == 3


def test_a_run_that_stalls_prints_where_it_waits(tmp_path):
    with (tmp_path / "stacks").open("w+") as file:
        stalls = Stalls(seconds=0.05, file=file)
        stalls.on_fit_start(None, None)
        wait_for_another_process()
        stalls.teardown()
        file.seek(0)
        told = file.read()
        assert "Timeout" in told
        assert "in wait_for_another_process" in told
        time.sleep(0.1)
        assert file.read() == ""  # the clock has stopped


def wait_for_another_process() -> None:
    time.sleep(0.2)


def test_a_run_that_goes_on_prints_no_stacks(tmp_path):
    with (tmp_path / "stacks").open("w+") as file:
        stalls = Stalls(seconds=0.3, file=file)
        stalls.on_fit_start(None, None)
        for _ in range(10):
            time.sleep(0.05)
            stalls.on_train_batch_end()
        stalls.on_exception()
        file.seek(0)
        assert file.read() == ""
