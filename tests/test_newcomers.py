"""A newcomer can write and run a source, a backbone and a method in their own files with the documentation alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from itr.cli import main
from itr.data.shards.schema import Manifest
from launching import ENOUGH
from pages import PACKAGE, commands, shown_class
from raw import save_image

PAGES = {  # by the module named in the page's commands
    "my_source": ("data/sources/README.md", 25),
    "my_backbone": ("backbones/README.md", 45),
    "my_package": ("methods/README.md", 40),
}
SOURCE, BACKBONE, _ = (page for page, _ in PAGES.values())
# The command as pip installs it.
SCRIPT = "import sys\nfrom itr.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
QUICK = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--data.batch_size=4", "--data.num_workers=0"]


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with the files from the documentation and a raw data set in the documented layout."""
    for module, (page, _) in PAGES.items():
        (tmp_path / f"{module}.py").write_text(shown_class(page))
    for split, number in (("train", 12), ("val", 4), ("test", 5)):
        for i in range(number):
            image = tmp_path / "raw" / split / f"{i}.png"
            save_image(image, i)
            image.with_suffix(".txt").write_text(f"{split} image {i}\nnumber {i}\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "itr").write_text(SCRIPT)
    return tmp_path


def itr(desk: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command `itr` in a folder; Python's path starts with the command's folder, without the current folder."""
    variables = {name: value for name, value in os.environ.items() if name != "ITR_IMPORT"}
    variables |= {"PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(desk / "bin" / "itr"), *arguments]
    return subprocess.run(command, cwd=desk, env=variables, capture_output=True, text=True, timeout=ENOUGH)


def run(desk: Path, *arguments: str) -> str:
    done = itr(desk, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("page", "most"), PAGES.values())
def test_the_class_in_the_documentation_is_short(page, most):
    lines = [line for line in shown_class(page).splitlines() if line.strip()]
    assert 10 < len(lines) <= most


def test_the_documented_source_writes_shards(desk, monkeypatch, capsys):
    monkeypatch.syspath_prepend(desk)
    monkeypatch.delitem(sys.modules, "my_source", raising=False)
    monkeypatch.chdir(desk)
    prepare = next(line for line in commands(SOURCE) if "--root" in line)
    assert main([*prepare, "--seed=3", "--num_workers=1"]) == 0
    found = Manifest.read(desk / "shards")
    assert found.source == "my_source.MySource"
    assert {split: (s.images, s.captions) for split, s in found.splits.items()} == {
        "train": (12, 24), "val": (4, 8), "test": (5, 10),
    }  # fmt: skip
    with pytest.raises(SystemExit):
        main(["prepare", "my_source.MySource", "--help"])
    printed = capsys.readouterr().out
    assert "Images, each with a text file of the same name" in printed
    assert "--ending ENDING" in printed
    assert "--bad_images" in printed


@pytest.mark.slow
def test_the_documented_commands_run_in_the_folder_of_the_files(desk):
    for line in commands(SOURCE):
        run(desk, *line)
    for line in commands(BACKBONE):
        run(desk, *line, *(QUICK if line[0] in ("fit", "test") else []))
    measured = json.loads((desk / "runs" / "mine" / "metrics.json").read_text())
    assert 0 < measured["test/rsum"] <= 600
    with np.load(desk / "mine.npz") as embedded:
        assert embedded["image"].shape == (5, 64)
        assert embedded["text"].shape == (10, 64)


@pytest.mark.slow
def test_all_three_train_together_and_every_command_opens_their_checkpoint_by_its_config(desk):
    run(desk, "prepare", "my_source.MySource", "--root=raw", "--out=shards", "--ending=.png")
    (desk / "mine.yaml").write_text(
        "model:\n  backbone:\n    class_path: my_backbone.MyBackbone\n    init_args: {dim: 16}\n"
        "  methods:\n  - class_path: my_package.Centred\n    init_args: {weight: 0.5}\n"
    )
    own = ["--config=mine.yaml", "--data.root=shards", "--trainer.default_root_dir=runs/mine"]
    run(desk, "fit", *own, *QUICK)
    best = "runs/mine/checkpoints/best.ckpt"
    weights = torch.load(desk / best, weights_only=True)["state_dict"]
    assert weights["methods.centred.centre"].abs().sum() > 0  # trained
    for verb in ("validate", "test", "predict"):
        run(desk, verb, *own, *QUICK, f"--ckpt_path={best}")
    named = ["--config=runs/mine/config.yaml"]
    opened = {
        "embed": ["--ckpt_path", best, "--data=shards", "--out=e.npz"],
        "evaluate": ["transfer", "--ckpt_path", best, "--data=shards", "--out=t.json"],
        "features": ["--modality=dense", "--model", best, "--data=shards", "--out=features"],
        "report": ["runs/mine"],
    }
    for verb, options in opened.items():
        refused = itr(desk, verb, *options)
        assert (refused.returncode == 1) == (verb != "report")  # a report shows whatever it can
        assert "add --config runs/mine/config.yaml" in refused.stderr, verb
        done = itr(desk, verb, *options, *named)
        assert "not part of itr" not in done.stderr
        if verb == "features":  # the model opens; this set has no dense captions
            assert "dense" in done.stderr
        else:
            assert done.returncode == 0, done.stderr
