"""Checkpoints that are truncated, corrupt, not ours, or do not fit on the disk."""

from __future__ import annotations

import subprocess

import pytest
import torch

from itr.errors import UserError
from itr.files.archives import fault
from itr.runs.checkpoints.checkpoint_files import newest, read, write


def checkpoint(step: int) -> dict:
    return {"global_step": step, "state_dict": {"w": torch.full((64, 64), float(step))}, "hyper_parameters": {}}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_file_appears_under_its_name_only_when_complete(tmp_path):
    write(checkpoint(3), tmp_path / "last.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert fault(tmp_path / "last.ckpt") == ""
    assert read(tmp_path / "last.ckpt")["global_step"] == 3


def test_a_full_disk_keeps_the_earlier_file(small_disk):
    write(checkpoint(1), small_disk / "last.ckpt")
    large = {**checkpoint(2), "state_dict": {"w": torch.zeros(2**20)}}
    with pytest.raises(OSError, match="No space left on device"):
        write(large, small_disk / "last.ckpt")
    assert [path.name for path in small_disk.iterdir()] == ["last.ckpt"]
    assert read(small_disk / "last.ckpt")["global_step"] == 1


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_detected_and_named(tmp_path, share):
    path = tmp_path / "last.ckpt"
    write(checkpoint(1), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert fault(path)
    with pytest.raises(UserError, match=r"could not read \S*last.ckpt as an itr checkpoint"):
        read(path)


def test_a_flipped_bit_in_the_weights_is_detected(tmp_path):
    path = tmp_path / "last.ckpt"
    write(checkpoint(1), path)
    data = bytearray(path.read_bytes())
    at = data.index(torch.full((8,), 1.0).numpy().tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert "damaged" in fault(path)


def test_the_newest_intact_checkpoint_is_found(tmp_path):
    for number, name in ((9, "last"), (7, "previous"), (5, "best")):
        write(checkpoint(number), tmp_path / f"{name}.ckpt")
    (tmp_path / "last.ckpt").write_bytes(b"torn")
    (tmp_path / "other.ckpt").write_bytes(b"")
    torch.save([1], tmp_path / "foreign.ckpt")
    assert newest(path for path in tmp_path.glob("*.ckpt") if path.stem != "last") == (tmp_path / "previous.ckpt", 7)
    assert newest([]) is None


def test_a_checkpoint_without_its_accumulated_gradients_is_the_last_choice(tmp_path):
    write({**checkpoint(9), "between_steps": True}, tmp_path / "best.ckpt")
    assert newest(tmp_path.glob("*.ckpt")) == (tmp_path / "best.ckpt", 9)
    write({**checkpoint(7), "between_steps": False}, tmp_path / "previous.ckpt")
    assert newest(tmp_path.glob("*.ckpt")) == (tmp_path / "previous.ckpt", 7)


def test_the_earlier_file_is_kept_under_another_name_once_the_new_one_is_complete(tmp_path):
    path = tmp_path / "last.ckpt"
    for number in (1, 2, 3):
        write(checkpoint(number), path, keep_as="previous.ckpt")
    assert read(path)["global_step"] == 3
    assert read(tmp_path / "previous.ckpt")["global_step"] == 2
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / "previous.ckpt").unlink()
    (tmp_path / "previous.ckpt").hardlink_to(path)  # the state after a kill between linking and renaming
    write(checkpoint(4), path, keep_as="previous.ckpt")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert read(tmp_path / "previous.ckpt")["global_step"] == 3
