"""Our results match the authors' if fixtures are next to the repository, and `tests/golden.py` reports mismatches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import golden

FOLDER = Path(__file__).parents[2] / "shared" / "golden"
FIXTURES = sorted(FOLDER.glob("*.safetensors"))


@pytest.mark.skipif(not FIXTURES, reason="the authors' numbers (shared/golden beside the repository) are not here")
@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_a_fixture_is_within_tolerance(path):
    if not path.stem.startswith(tuple(golden.CHECKS)):
        pytest.skip(f"itr has no model yet that {path.stem} could be compared with")
    line, within = golden.check(path)
    assert within, line


@pytest.mark.skipif(not FIXTURES, reason="the authors' numbers (shared/golden beside the repository) are not here")
def test_a_wrong_number_is_out_of_tolerance(tmp_path, capsys):
    tensors = load_file(FOLDER / "triplet.safetensors")
    tensors["out.loss_max"] += 1e-3
    save_file(tensors, tmp_path / "triplet_wrong.safetensors")
    assert golden.main([str(tmp_path)]) == 1
    assert "triplet_wrong: 0.001  (out of tolerance)" in capsys.readouterr().out


def test_an_unknown_prefix_fails(tmp_path, capsys):
    save_file({"in.x": torch.zeros(1)}, tmp_path / "other_thing.safetensors")
    assert golden.main([str(tmp_path)]) == 1
    assert "other_thing: unknown prefix" in capsys.readouterr().out


def test_a_damaged_fixture_is_reported(tmp_path, capsys):
    save_file({"in.image": torch.zeros(2, 2)}, tmp_path / "triplet_broken.safetensors")
    assert golden.main([str(tmp_path)]) == 1
    assert "triplet_broken: KeyError" in capsys.readouterr().out


def test_a_folder_without_fixtures_is_refused(tmp_path):
    assert golden.main([str(tmp_path)]) == 1
    assert golden.main([str(tmp_path / "absent")]) == 2
