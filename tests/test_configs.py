"""Every shipped config is parsed and built, with tiny models in place of pretrained ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from itr.commands.configs import config_folder, find_config, resolve_configs
from itr.commands.quieten import quieten
from itr.runs.command import TrainingCLI
from tiny import TINY_CLIP, TINY_DUAL, TINY_VSE

FOLDER = config_folder()
# These differ from others only in the size of a tower or the name of a data set: built with the slow tests.
TWINS = re.compile(
    r"_l14|_[cu]sa|_best|_stage1|384|swin224|ele_fashion|mag_(toys|grocery|reddit)|^(data/)?f30k_|backbone/dual_(?!siglip2)"
)


OFTEN = ("data/coco.yaml", "backbone/clip_vit_b32.yaml")  # parts built in every test run


def rows(pattern: str) -> list[Any]:
    """The shipped configs; near duplicates are marked as slow."""
    names = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.glob(pattern))
    runs = [path.read_text() for path in FOLDER.glob("*.yaml") if not TWINS.search(path.name)]

    def often(name: str) -> bool:
        built = "/" in name and name not in OFTEN and any(name in run for run in runs)
        return not TWINS.search(name) and not built

    return [name if often(name) else pytest.param(name, marks=pytest.mark.slow) for name in names]


# Only the model names are replaced, because they need downloads; all other arguments are those of the config.
NAMES = {"VSE": ("vision", "text"), "CLIP": ("model", "pretrained"), "Dual": ("model",)}
DEEP_VSE = [option.replace("num_hidden_layers: 1", "num_hidden_layers: 2") for option in TINY_VSE[1:3]]
STAND_INS = {"VSE": DEEP_VSE, "CLIP": TINY_CLIP[1:], "Dual": TINY_DUAL[1:]}


class StandIns(TrainingCLI):
    """Parses everything, and builds without downloads, a first stage or the weights of an earlier run."""

    def before_instantiate_classes(self) -> None:
        self.config.model.weights = None
        backbone = self.config.model.backbone
        kind = backbone.class_path.rpartition(".")[2]
        if any(backbone.init_args.get(name) for name in NAMES[kind]):
            for name in NAMES[kind]:
                backbone.init_args[name] = None
            for option in STAND_INS[kind]:
                name, _, value = option.removeprefix("--model.backbone.").partition("=")
                backbone.init_args[name] = yaml.safe_load(value)
        for method in self.config.model.methods:
            if method.init_args.get("stage1"):
                method.init_args.stage1 = None


def build(arguments: list[str]) -> TrainingCLI:
    """Build model, data and trainer."""
    quieten()
    return StandIns(resolve_configs(arguments), run=False)


@pytest.mark.parametrize("name", rows("*.yaml"))
def test_a_shipped_config_is_built(name, tmp_path):
    cli = build(["--config", name, "--trainer.accelerator=cpu", "--trainer.precision=32"])
    assert cli.trainer.max_epochs > 0
    assert cli.trainer.default_root_dir == f"runs/{Path(name).stem}"
    assert cli.model.backbone.dim > 0
    assert cli.datamodule.batch_size > 1


@pytest.mark.slow
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
    option, defaults, *found = resolve_configs(arguments)
    assert (option, json.loads(defaults)["class_path"]) == ("--model.backbone", "VSE")  # so that the file works alone
    assert found == [
        "--model.backbone", str(FOLDER / "backbone" / "vit_bert.yaml"), f"--data={FOLDER / 'data' / 'coco.yaml'}"
    ]  # fmt: skip
