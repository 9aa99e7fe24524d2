from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from itr.cli import main
from tiny import TINY_VSE

OPTIONS = ["--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


@pytest.fixture(scope="session")
def trained_run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder after `fit` and `test`; tests that change it use `run` instead."""
    folder = tmp_path_factory.mktemp("trained")
    common = [f"--data.root={scenes}", f"--trainer.default_root_dir={folder}", *OPTIONS]
    fit = ["--data.batch_size=8", "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1"]
    fit += [*TINY_VSE, "--model.backbone.image_size=32"]
    assert main(["fit", "--config=demo.yaml", *common, *fit]) == 0
    assert main(["test", *common, "--ckpt_path=best"]) == 0
    return folder


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the trained run that a test may change."""
    return Path(shutil.copytree(trained_run, tmp_path / "run"))
