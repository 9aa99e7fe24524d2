"""Where and how the program is started: folders that can't be written, odd names, other locales, no network."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from itr.cli import main
from itr.errors import UserError
from itr.files.writing import check_writable
from raw import save_image
from tiny import TINY_VSE

ITR = [sys.executable, "-m", "itr"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
SMALL = [*TINY_VSE, "--data.batch_size=8", "--data.num_workers=0", "--trainer.max_epochs=1"]
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


@pytest.mark.slow
def test_a_folder_below_a_file_is_refused_before_training(scenes, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "run"
    where = [f"--data.root={scenes}", f"--trainer.default_root_dir={folder}", *QUIET]
    assert main(["fit", *where, *SMALL]) == 1
    told = (
        f"itr: error: {folder} can't be written: Not a directory; choose another folder by --trainer.default_root_dir"
    )
    assert capsys.readouterr().err.splitlines()[-1] == told
    for verb in ("test", "predict"):  # before anything is measured
        assert main([verb, *where, *TINY_VSE]) == 1
        assert capsys.readouterr().err.splitlines()[-1] == told


@pytest.mark.parametrize(
    "words",
    [
        ["embed", "--ckpt_path=no.ckpt", "--texts=no.txt", "--out={}/a.npz"],
        ["evaluate", "coco", "--ckpt_path=no.ckpt", "--data=no", "--out={}/a.json"],
        ["convert", "cusa", "no.pth", "--out={}/a.ckpt"],
        ["report", "no", "--out={}/a.html"],
    ],
)
def test_an_unwritable_output_file_is_refused_before_the_work(tmp_path, capsys, words):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "more"
    assert main([word.format(folder) for word in words]) == 1
    told = f"itr: error: {folder} can't be written: Not a directory; choose another folder by --out"
    assert capsys.readouterr().err.splitlines()[-1] == told
    (tmp_path / words[-1].rpartition("/")[2]).mkdir()
    assert main([word.format(tmp_path) for word in words]) == 1
    assert "which is a folder; give the name of a file" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["data", "verify", "~no.body/x"], ["embed", "--ckpt_path=a", "--out=~no.body/a"]])
def test_the_home_of_an_unknown_user_is_reported(capsys, words):
    assert main(words) == 1
    assert "error: a path begins with ~ but has no home folder" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_the_cpu_is_used_and_an_explicit_gpu_is_refused(scenes, tmp_path, capsys):
    where = [f"--data.root={scenes}", f"--trainer.default_root_dir={tmp_path}", "--trainer.enable_progress_bar=false"]
    assert main(["fit", *where, *SMALL, "--trainer.accelerator=gpu"]) == 1
    assert "itr: error: No supported gpu backend found" in capsys.readouterr().err
    assert main(["fit", *where, *SMALL]) == 0
    assert (tmp_path / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.slow
def test_without_a_network_a_hub_name_is_refused_with_alternatives(scenes, tmp_path):
    """Offline by the hub's own switch; `tests/weights/test_hub.py` has a hub that cannot be reached."""
    where = [f"--data.root={scenes}", f"--trainer.default_root_dir={tmp_path}", *QUIET]
    command = [*ITR, "fit", *where, "--model.backbone=VSE", "--model.backbone.vision=google/vit-base-patch16-224"]
    environment = {**ENVIRONMENT, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    told = done.stderr.splitlines()[-1]
    assert told.startswith("itr: error: could not load google/vit-base-patch16-224: the hub cannot be reached")
    assert "Pass a local folder, or offline/efficientnet_lite0 or" in told
    assert not (tmp_path / "checkpoints").exists()


def test_checking_that_a_folder_is_writable_leaves_nothing(tmp_path):
    check_writable(tmp_path / "a" / "b", "--out")
    assert not list(tmp_path.iterdir())
    (tmp_path / "checkpoints").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="checkpoints can't be written: No such file"):
        check_writable(tmp_path / "checkpoints", "--out")


@pytest.mark.slow
def test_a_read_only_file_system_is_refused_before_training(scenes, tmp_path):
    """A real one, mounted in its own namespace."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("needs leave to mount a file system (unshare -rm)")
    disk = tmp_path / "disk"
    disk.mkdir()
    fit = shlex.join([*ITR, "fit", f"--data.root={scenes}", f"--trainer.default_root_dir={disk}/run", *SMALL, *QUIET])
    script = f"mount -t tmpfs tmpfs {disk} && mkdir {disk}/run && mount -o remount,ro {disk} || exit 77; {fit}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("needs leave to mount a file system (tmpfs)")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"itr: error: {disk}/run can't be written: Read-only file system; choose another folder by "
        "--trainer.default_root_dir"
    )
    assert "Traceback" not in done.stderr
    assert "epoch 1/" not in done.stdout + done.stderr


C_LOCALE = {"LC_ALL": "C", "LANG": "C", "TZ": "Asia/Kathmandu"}  # in which Python itself switches to UTF-8
ASCII_ONLY = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii", "TZ": "UTC"}


@pytest.mark.slow
@pytest.mark.parametrize(("locale", "name"), [(C_LOCALE, "b\u00e4r \u732b"), ({**C_LOCALE, **ASCII_ONLY}, "bear")])
def test_spaces_links_locale_time_zone_and_windows_lines(tmp_path, locale, name):
    """A table as Windows writes it, in a folder with a space, reached through a link; all read and written as UTF-8."""
    root = tmp_path / f"some {name}"
    rows = []
    for i in range(24):
        save_image(root / "photos" / f"{name} {i}.jpg", i, 40, 40)
        row = {"image": f"photos/{name} {i}.jpg", "captions": [f"B\u00e4r {i} \u732b"]}
        rows.append(json.dumps(row, ensure_ascii=False))
    text = "\r\n".join(rows) + "\r\n"
    (root / "captions.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "link").symlink_to(root, target_is_directory=True)

    def run(*arguments: str) -> str:
        environment = {**ENVIRONMENT, **locale}
        command = [*ITR, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("prepare", "table", "--root=link", "--out=my shards", "--shard_size=4")
    (tmp_path / "linked shards").symlink_to(tmp_path / "my shards", target_is_directory=True)
    where = ["--data.root=linked shards", "--trainer.default_root_dir=my runs/a b", *QUIET]
    run("fit", *where, *SMALL, "--data.batch_size=4")
    run("test", *where, "--ckpt_path=best")
    metrics = json.loads((tmp_path / "my runs" / "a b" / "metrics.json").read_text("utf-8"))
    assert metrics["about"]["data"]["images"] == 2
    assert "matches the manifest" in run("data", "verify", "linked shards")
    assert "train: 20 of 20 images: linked shards" in run("data", "show", "linked shards")
    run("report", "my runs/a b")
    assert "B\u00e4r" in (tmp_path / "my runs" / "a b" / "report" / "index.html").read_text("utf-8")


@pytest.mark.slow
def test_a_name_that_the_terminal_cannot_show_does_not_stop_the_command(tmp_path):
    save_image(tmp_path / "ok.jpg", 1)
    rows = [{"image": name, "captions": ["x"], "split": "train"} for name in ("b\u00e4r.jpg", "ok.jpg")]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [*ITR, "prepare", "table", f"--root={tmp_path}", f"--out={tmp_path / 'out'}", "--bad_images=skip"]
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "b\\xe4r.jpg: does not exist" in told
