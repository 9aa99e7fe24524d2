"""A run folder of unknown origin: its report names what is wrong with each file, in bounded time."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from itr.cli import main
from itr.report.content.runs import read_run

METRICS = '{"test/i2t_r1": 50.0, "test/rsum": 100.0}'
ALIASES = "a0: &a0 [1, 1]\n" + "\n".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 24))


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("config.yaml", ALIASES, "No settings: could not read .*: it stands for more than"),
        ("config.yaml", "- " * 2000, "No settings: could not read .*: it is nested too deeply"),
        ("config.yaml", "a: &a [*a]", "a part of it contains itself"),
        ("metrics.json", "[" * 99_999, "could not read .*metrics.json as JSON: it is nested too deeply"),
        (
            "logs/version_0/metrics.csv",
            "step,a\n1," + "x" * 200_000,
            "Could not read the training curves: field larger",
        ),
        ("logs/version_0/metrics.csv", b"step,a\n1,\xff\n", "Could not read the training curves: 'utf-8'"),
    ],
    ids=["aliases", "deep", "itself", "deep metrics", "long field", "no text"],
)
def test_a_hostile_file_becomes_a_note_of_bounded_length(tmp_path: Path, name, content, note):
    (tmp_path / "good.json").write_text(METRICS)
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    notes = read_run(tmp_path, "run").notes
    assert [found for found in notes if re.search(note, found)], notes
    assert max(map(len, notes)) < 500


def test_a_pipe_instead_of_a_log_is_not_waited_for(tmp_path: Path):
    (tmp_path / "good.json").write_text(METRICS)
    (tmp_path / "logs" / "version_0").mkdir(parents=True)
    os.mkfifo(tmp_path / "logs" / "version_0" / "metrics.csv")
    assert [note for note in read_run(tmp_path, "run").notes if "metrics.csv is not a file of at most" in note]


def test_curves_with_endless_steps_and_values_are_shown_without_them(tmp_path: Path):
    path = tmp_path / "logs" / "version_0" / "metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_text("step,train/loss\n1,nan\n2,1e308\n3,-1e308\n1e400,3\n-1e308,4\n4,5\n5,6\n")
    assert read_run(tmp_path, "run").history == {"train/loss": [(4.0, 5.0), (5.0, 6.0)]}
    assert main(["report", str(tmp_path), "--pictures=0", "--device=cpu"]) == 0


def test_a_number_too_large_for_a_float_is_no_metric(tmp_path: Path):
    (tmp_path / "metrics.json").write_text('{"test/rsum": 1' + "0" * 400 + ', "test/i2t_r1": 50}')
    (found,) = read_run(tmp_path, "run").metrics
    assert found.figures == {"test/i2t_r1": 50.0}


@pytest.mark.parametrize(
    "config", ["data: {root: [1, 2]}", "data: {root: '~nobody-at-all/x'}", 'data: {root: "a\\0b"}']
)
def test_settings_of_a_wrong_kind_take_one_line(tmp_path: Path, capsys, config):
    (tmp_path / "metrics.json").write_text(METRICS)
    (tmp_path / "config.yaml").write_text(config)
    status = main(["report", str(tmp_path), "--pictures=0", "--device=cpu"])
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert (
        status == 0 or len([line for line in told.splitlines() if line.startswith("itr: error: could not show")]) == 1
    )
