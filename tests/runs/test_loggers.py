"""Logs of a run on disk: rows that are written stay, whatever happens while more are written."""

from __future__ import annotations

import csv
import resource
from pathlib import Path

import pytest

from itr.runs.loggers import Csv


def rows(logger: Csv) -> list[dict[str, str]]:
    with (Path(logger.log_dir) / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("figures", [{}, {"val/rsum": 1.0}], ids=["rows", "another header"])
def test_a_full_disk_loses_no_row(tmp_path, caplog, figures):
    logger = Csv(tmp_path, "logs")
    for step in range(30):
        logger.log_metrics({"train/loss": 0.5}, step)
    logger.save()
    size = (Path(logger.log_dir) / "metrics.csv").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
    try:
        for step in range(30, 60):
            logger.log_metrics({"train/loss": 0.5, **figures}, step)
        logger.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "could NOT write logs (File too large)" in caplog.text
    assert [int(row["step"]) for row in rows(logger)] == list(range(30))
    logger.log_metrics({"train/loss": 0.5, **figures}, 60)
    logger.save()
    assert [(int(row["step"]), row["train/loss"]) for row in rows(logger)] == [(step, "0.5") for step in range(61)]
    assert [row.get("val/rsum") for row in rows(logger)][30:] == [str(*figures.values()) or None] * 31
    assert [path.name for path in Path(logger.log_dir).iterdir()] == ["metrics.csv"]
