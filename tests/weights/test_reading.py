"""Weights in every usual form of file are read, and nothing in the file is run."""

from __future__ import annotations

import argparse
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from itr.errors import UserError
from itr.weights.reading import read_weights
from itr.weights.script_archive import read_script_archive
from weight_files import save_script

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.0, -1.0])}


class Program:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def beside(weights: dict[str, Tensor]) -> dict[str, Any]:
    """What training programs put beside weights."""
    args = argparse.Namespace(lr=0.1, path=Path("data"), scores=np.float64(0.5))
    return {"epoch": 3, "args": args, "best": np.float32(1.5), "optimizer": {"state": {}}, "state_dict": weights}


@pytest.mark.parametrize("key", ["", "state_dict", "model_state_dict", "model", "module"])
def test_state_dicts_at_the_top_and_under_the_usual_keys(tmp_path: Path, key: str) -> None:
    torch.save({"epoch": 1, key: WEIGHTS} if key else WEIGHTS, tmp_path / "w.pt")

    found = read_weights(tmp_path / "w.pt")

    assert found.tensors.keys() == WEIGHTS.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in WEIGHTS.items())
    assert not found.from_openai


@pytest.mark.parametrize("zipped", [True, False])
def test_settings_and_scores_beside_weights_are_skipped(tmp_path: Path, zipped: bool) -> None:
    saved = beside(WEIGHTS) if zipped else {**beside(WEIGHTS), "args": argparse.Namespace(lr=0.1)}
    torch.save(saved, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)

    assert torch.equal(read_weights(tmp_path / "w.pt").tensors["a.weight"], WEIGHTS["a.weight"])


def test_safetensors(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "w.safetensors")

    assert read_weights(tmp_path / "w.safetensors").tensors.keys() == WEIGHTS.keys()


def test_a_script_archive_is_read_without_its_program(tmp_path: Path) -> None:
    weights = save_script(tmp_path / "w.pt")

    found = read_weights(tmp_path / "w.pt")

    assert found.from_openai
    expected = {name: value for name, value in weights.items() if "." in name or name == "scale"}
    assert found.tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found.tensors[name], value), name
        assert found.tensors[name].dtype == value.dtype


def test_a_script_archive_that_names_other_objects_is_refused(tmp_path: Path) -> None:
    save_script(tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as source, zipfile.ZipFile(tmp_path / "evil.pt", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("/data.pkl"):
                data = b"cos\nmkdir\n(V" + str(tmp_path / "ran").encode() + b"\ntR."
            target.writestr(name, data)

    with pytest.raises(UserError, match=r"evil\.pt: it refers to os\.mkdir"):
        read_weights(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("change", ["size", "compressed"])
def test_a_script_archive_cannot_ask_for_more_than_it_has(tmp_path: Path, change: str) -> None:
    save_script(tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as source, zipfile.ZipFile(tmp_path / "big.pt", "w") as target:
        for name in source.namelist():
            shrunk = change == "compressed" and "/data/" in name
            kind = zipfile.ZIP_DEFLATED if shrunk else zipfile.ZIP_STORED
            data = source.read(name)
            target.writestr(name, data[:-1] if change == "size" and "/data/" in name else data, kind)

    with pytest.raises(Exception, match=r"compressed|differs|multiple"):
        read_script_archive(tmp_path / "big.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_program_beside_weights_is_refused_with_its_name(tmp_path: Path, zipped: bool) -> None:
    saved = {"state_dict": WEIGHTS, "more": Program(tmp_path / "ran")}
    torch.save(saved, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)

    with pytest.raises(UserError, match=r"w\.pt: it also has an object that could run code \(\w+\.mkdir\)") as error:
        read_weights(tmp_path / "w.pt")
    assert "weights_only" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("saved", "reason"),
    [({"epoch": 1, "loss": 2.0}, "it has epoch, loss"), ([1, 2], "it contains a list"), ({}, "it has nothing")],
)
def test_a_file_without_weights_is_refused_with_what_it_has(tmp_path: Path, saved: Any, reason: str) -> None:
    torch.save(saved, tmp_path / "w.pt")

    with pytest.raises(UserError, match=f"no weights.*{reason}"):
        read_weights(tmp_path / "w.pt")


def test_messages_are_short(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"\x80\x02" + b"\xff" * 10_000)

    with pytest.raises(UserError, match=r"could not read the weights in .*w\.pt") as error:
        read_weights(tmp_path / "w.pt")
    assert len(str(error.value)) < 600
    with pytest.raises(UserError, match="does not exist"):
        read_weights(tmp_path / "none.pt")
