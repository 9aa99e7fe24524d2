"""The performance page matches the result files, and says clearly what was not measured."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import measuring  # noqa: E402  benchmarks is not a package
import page  # noqa: E402
from loss_counts import Count  # noqa: E402
from measuring import Line, Rounds  # noqa: E402

SCRIPTS = [name for name in page.SECTIONS if (ROOT / "benchmarks" / f"{name}.py").exists()]


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds():
    rounds = Rounds({"ours": [1.0, 20.0, 3.0], "theirs": [2.0, 10.0, 4.0]})
    assert rounds.ratio("ours", "theirs") == 0.75
    assert rounds.median("ours") == 3.0


def test_all_variants_take_turns():
    order: list[str] = []
    found = measuring.side_by_side({n: lambda n=n: order.append(n) for n in "ab"}, rounds=2, warmup=1)
    assert "".join(order) == "abab" + "ba"
    assert {name: len(taken) for name, taken in found.seconds.items()} == {"a": 2, "b": 2}


@pytest.mark.parametrize(
    ("line", "met"),
    [
        (Line("x", "s", 1.0), None),
        (Line("x", "s", 1.0, at_most=1.0), True),
        (Line("x", "s", 1.0, at_most=0.9), False),
        (Line("x", "s", 1.0, ratio=0.5, at_least=0.6), False),  # if there is a ratio, it decides
        (Line("x", "s", 1.0, ratio=0.7, at_least=0.6, at_most=0.8), True),
        (Line("x", "s", None, at_least=1.0, unmeasured="no GPU"), None),
    ],
)
def test_a_line_meets_its_bounds_or_not(line, met):
    assert line.met is met


def test_the_page_shows_missed_targets_and_missing_measurements(tmp_path):
    short = Line("slow thing", "ms", 3.0, "bare loop", 1.0, 0.5, "bytes over bandwidth", 3.0, at_most=2.0)
    lines = [
        replace(short, remark="Two ways were tried.", profile={"copying": 0.7, "waiting": 0.3}),
        Line("other thing", "s", at_most=1.0, unmeasured="it needs a GPU"),
        short,
    ]
    curve = [{"batch": 1, "seconds": 0.5}, {"batch": 2, "seconds": 1234.5}]
    measuring.write(tmp_path / "cpu", "training_step", lines, {"rounds": 3}, {"the curve": curve})
    text = page.page(tmp_path)
    assert "| 1 | slow thing | at most 2 | 3 ms | bare loop: 1 ms | 0.5 ms | 3 | **missed** |" in text
    assert "- 1, 3: Limit: bytes over bandwidth." in text
    assert "- 1: Two ways were tried." in text
    assert "- 1: Profile: copying 70 %, waiting 30 %." in text
    assert "| 2 | other thing | at most 1 | not measured: it needs a GPU |" in text
    assert "| 2 | 1,234 |" in text
    assert "No GPU was available" in text
    assert "Not measured yet: `python benchmarks/overheads.py`" in text


def test_the_page_in_the_docs_matches_the_results():
    text = page.PAGE.read_text(encoding="utf-8")
    assert text == page.page(measuring.RESULTS)
    lines = text.splitlines()
    assert not [line for before, line in pairwise(lines) if line.startswith("#") and before]  # markdown wants one empty


def test_the_bytes_of_an_operation_are_its_reads_and_writes():
    table, column, out = torch.ones(4, 6), torch.ones(4, 1), torch.ones(4, 6)
    found = []
    for ask in (
        lambda: table * column.expand(4, 6),
        lambda: out.mul_(table),
        lambda: out.copy_(table),
        lambda: table[1:].zero_(),
        lambda: table.T,
        lambda: table @ table.T,
    ):
        with Count() as count:
            ask()
        found.append((count.found.kernels, count.found.read_or_written, count.found.operations))
    assert found == [
        (1, 4 * (24 + 4 + 24), 0),
        (1, 4 * (24 + 24 + 24), 0),
        (1, 4 * (24 + 24), 0),
        (1, 4 * 18, 0),
        (0, 0, 0),
        (1, 4 * (24 + 24 + 16), 2 * 4 * 4 * 6),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_benchmark_runs(name, tmp_path):
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / f"{name}.py"),
        "--quick",
        "--rounds",
        "1",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    _, lines = measuring.read(tmp_path / f"{name}.json")
    assert lines
    assert all(line.ours is not None or line.unmeasured for line in lines)
