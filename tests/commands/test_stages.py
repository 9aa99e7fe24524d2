"""Both stages of D2S-VSE in one command."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
import yaml

from itr.cli import main
from itr.module import RetrievalModule
from launching import ENOUGH
from tiny import TINY_VSE
from training_runs import STILL, checkpoint, start, wait_for


@pytest.mark.slow
def test_a_first_stage_starts_the_second(scenes: Path, tmp_path: Path) -> None:
    stage1, stage2 = tmp_path / "stage1.yaml", tmp_path / "stage2.yaml"
    checkpoint = tmp_path / "one" / "checkpoints" / "last.ckpt"
    stage1.write_text(
        yaml.safe_dump({"data": {"texts": "dense"}, "trainer": {"default_root_dir": str(tmp_path / "one")}})
    )
    d2s = {"class_path": "D2S", "init_args": {"stage1": str(checkpoint), "num_prompts": 2, "depth": 1}}
    stage2.write_text(
        yaml.safe_dump({"model": {"methods": [d2s]}, "trainer": {"default_root_dir": str(tmp_path / "two")}})
    )
    fast = [f"--data.root={scenes}", "--data.num_workers=0", "--data.batch_size=8", "--trainer.accelerator=cpu"]
    fast += ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", *TINY_VSE]
    assert main(["stages", str(stage1), str(stage2), *fast]) == 0
    second = RetrievalModule.load_from_checkpoint(tmp_path / "two" / "checkpoints" / "last.ckpt")
    first = torch.load(checkpoint, weights_only=True)["state_dict"]
    prefix = "backbone.text_tower."
    teacher = {name: value for name, value in second.methods["d2s"].state_dict().items() if name.startswith("teacher")}
    assert teacher
    for name, value in first.items():
        if name.startswith(prefix):
            (match,) = (v for n, v in teacher.items() if n.endswith(name.removeprefix("backbone.")))
            assert torch.equal(match, value), name


@pytest.mark.slow
def test_stages_that_fail_stop(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "one.yaml"
    config.write_text(yaml.safe_dump({"data": {"root": "nowhere"}}))
    assert main(["stages", str(config), str(config)]) == 1
    assert "stage 1" in capsys.readouterr().err
    assert main(["stages", "none.yaml"]) == 1
    assert main(["stages", str(config), "--trainer.default_root_dir=x"]) == 1
    assert main(["stages", "--help"]) == 0


@pytest.mark.slow
def test_a_stopped_stage_writes_a_checkpoint_and_later_stages_do_not_start(scenes: Path, tmp_path: Path) -> None:
    """The signal reaches the group, so the stage receives it twice: directly and forwarded."""
    configs = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    for config in configs:
        config.write_text(yaml.safe_dump({"trainer": {"default_root_dir": str(tmp_path / config.stem)}}))
    more = [f"--data.root={scenes}", "--data.num_workers=0", "--data.batch_size=8", *STILL, *TINY_VSE]
    more += ["--checkpoint.every_steps=3", "--trainer.max_epochs=200"]
    process = start(["stages", *map(str, configs), *more], tmp_path / "log")
    wait_for(tmp_path / "one" / "checkpoints" / "last.ckpt", process)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(ENOUGH) == 143
    assert f"stopped after step {checkpoint(tmp_path / 'one')['global_step']}" in (tmp_path / "log").read_text()
    assert not (tmp_path / "two").exists()
