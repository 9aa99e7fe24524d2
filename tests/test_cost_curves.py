"""Curves are fitted and epochs calculated according to their formulas."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import costs  # noqa: E402  benchmarks is not a package
import measuring  # noqa: E402
from curves import fitted  # noqa: E402


def test_a_fit_recovers_the_curve_of_its_points():
    x = [1.0, 2.0, 5.0, 10.0]
    fit = fitted(x, [3 + 0.5 * value**2 for value in x], (0, 2))
    assert fit.coefficients == pytest.approx({0: 3.0, 2: 0.5})
    assert fit.residual == pytest.approx(0, abs=1e-9)
    assert fit.r2 == pytest.approx(1)
    assert fit.summary("ms", "B").startswith("Fitted: 3 ms + 0.5 ms · B²; largest residual 0 %, R² 1.0000")


def test_a_fit_weights_points_by_size_and_gives_its_largest_error():
    fit = fitted([1.0, 1.0], [1.0, 3.0], (0,))  # least squares of the relative errors: (1 + 1/3) / (1 + 1/9)
    assert fit.coefficients[0] == pytest.approx(1.2)
    assert fit.residual == pytest.approx(0.6)


def test_the_cost_of_a_step_follows_from_its_operations_and_bytes():
    model = costs.Model("m", image=10e9, text=5e9, parameters=1e8, width=100)
    alone, together = costs.step(model, 1, 1, 0.5), costs.step(model, 5, 64, 0.5)
    assert (alone.pairs, together.pairs) == (1024, 512)
    assert alone.towers == pytest.approx(1024 * 45e9 / (0.5 * 989e12))
    assert alone.network == 0
    assert together.towers == pytest.approx(512 * 21e9 / (0.5 * 989e12))  # five captions share a picture
    sent = 2 * 63 / 64 * 4e8 + 3 * 63 * 2 * 4 * 512 * 100
    assert together.network == pytest.approx(sent / 50e9)


def test_gpu_hours_count_all_gpus_and_cores_follow_the_images():
    model, epoch = costs.MODELS[0], costs.Epoch("e", 10**6, 5)
    row = costs.row(model, epoch, 8, 0.4, images=1000)
    assert row["GPU-hours"] == pytest.approx(8 * row["hours"])
    assert row["cores per GPU"] == pytest.approx(10**6 / 5 / 8 / (3600 * row["hours"]) / 1000)
    assert row["towers, %"] + row["loss, %"] + row["network, %"] == pytest.approx(100)


def test_a_share_measured_on_a_gpu_replaces_the_assumed_one(tmp_path):
    def hours(model: str) -> float:
        rows = costs.epoch_tables(tmp_path, 1000)["Cost of an epoch, calculated"]
        return next(row["hours"] for row in rows if row["model"] == model)

    before = [hours(model.name) for model in costs.MODELS]
    line = measuring.Line("ViT-B/32, batch 1,024: share of the bf16 rate", "", 0.2, at_least=0.4)
    measuring.write(tmp_path, "training_step", [line], {}, {})
    after = [hours(model.name) for model in costs.MODELS]
    assert after[0] > 1.9 * before[0]
    assert after[1:] == before[1:]
    assumptions = costs.epoch_tables(tmp_path, 1000)["Assumptions of the calculated epochs"]
    assert "measured on a GPU: ViT-B/32 20 %" in assumptions


def test_epochs_are_calculated_with_the_measured_gpu_utilization(tmp_path):
    import training_step

    line = training_step.share_of_rate(measuring.Line("a step", "ms", ours=100.0, limit=47.0), costs.MODELS[1])
    measuring.write(tmp_path, "training_step", [line], {}, {})
    assert costs.shares(tmp_path) == {"ViT-B/16": 0.47}
