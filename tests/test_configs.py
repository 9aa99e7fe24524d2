"""Every shipped config is parsed and built: all but pretrained weights, for which tiny stand-ins are given by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace

from itr.parsing import config_folder, find_config, resolve_configs
from itr.training_cli import TrainingCLI, quieten
from tiny import TINY_CLIP, TINY_VSE

FOLDER = config_folder()
# The same as another but for the size of a tower or the name of a data set: built with the slow tests.
TWINS = re.compile(r"_l14|384|swin224|mag_(toys|grocery|reddit)|^(data/)?f30k_(clip|csa|usa|cusa)")


def rows(pattern: str) -> list[Any]:
    """The shipped configs, twins marked as slow."""
    names = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.glob(pattern))
    return [pytest.param(name, marks=pytest.mark.slow) if TWINS.search(name) else name for name in names]


def pretrained(options: dict[str, Any]) -> bool:
    return any(options.get(key) for key in ("vision", "text", "pretrained"))


def backbone_of(arguments: list[str]) -> tuple[str, dict[str, Any], bool]:
    """Class and arguments of the backbone that a command line asks for, not yet built; and whether it has a stage 1."""

    class ParseOnly(TrainingCLI):
        def instantiate_classes(self) -> None:
            raise Parsed(self.config)

    class Parsed(Exception):  # noqa: N818
        pass

    with pytest.raises(Parsed) as parsed:
        ParseOnly(resolve_configs(arguments), run=False)
    config: Namespace = parsed.value.args[0]
    stage1 = any(method.init_args.get("stage1") for method in config.model.methods)
    backbone = config.model.backbone
    return backbone.class_path.rpartition(".")[2], backbone.init_args.as_dict(), stage1


def build(arguments: list[str]) -> TrainingCLI:
    """Build model, data and trainer."""
    quieten()
    name, options, stage1 = backbone_of(arguments)
    if stage1:  # the first stage's checkpoint is there only after it has run
        arguments = [*arguments, "--model.methods.stage1=null"]
    if pretrained(options):
        # The names are the only part that can't be had here; all other arguments stay as the config has them.
        tiny = {"VSE": TINY_VSE[1:3], "CLIP": TINY_CLIP[1:]}[name]
        names = {"VSE": ("vision", "text"), "CLIP": ("model", "pretrained")}[name]
        arguments = [*arguments, *(f"--model.backbone.{key}=null" for key in names), *tiny]
    return TrainingCLI(resolve_configs(arguments), run=False)


@pytest.mark.parametrize("name", rows("*.yaml"))
def test_a_shipped_run_is_built(name, tmp_path):
    cli = build(["--config", name, "--trainer.accelerator=cpu", "--trainer.precision=32"])
    assert cli.trainer.max_epochs > 0
    assert cli.trainer.default_root_dir == f"runs/{Path(name).stem}"
    assert cli.model.backbone.dim > 0
    assert cli.datamodule.batch_size > 1


@pytest.mark.parametrize("name", rows("*/*.yaml"))
def test_a_shipped_part_can_be_given_on_the_command_line(name):
    option = {"data": "--data", "backbone": "--model.backbone"}[name.partition("/")[0]]
    cli = build([option, name, "--trainer.accelerator=cpu"])
    expected = yaml.safe_load((FOLDER / name).read_text())
    if option == "--data":
        assert str(cli.datamodule.root) == expected["root"]
    else:
        assert type(cli.model.backbone).__name__ == expected["class_path"]


def test_configs_are_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("demo.yaml") == find_config("demo") == str(FOLDER / "demo.yaml")
    (tmp_path / "demo.yaml").write_text("seed_everything: 7\n")
    assert find_config("demo.yaml") == "demo.yaml"
    arguments = ["--model.backbone", "backbone/vit_bert.yaml", "--data=data/coco.yaml"]
    assert resolve_configs(arguments) == [
        "--model.backbone", str(FOLDER / "backbone" / "vit_bert.yaml"), f"--data={FOLDER / 'data' / 'coco.yaml'}"
    ]  # fmt: skip
