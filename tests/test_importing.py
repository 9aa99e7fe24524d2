"""Only modules that the user names are imported, also from the current folder; typos get one clear message."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from itr.checkpoints import open_checkpoint
from itr.cli import main
from itr.commands.configs import import_config_classes, resolve_configs
from itr.data.preparing.command import main as prepare
from itr.errors import UserError
from itr.importing import add_current_folder, import_module_of_user
from tiny import save_checkpoint

SOURCES = """
from itr.data.sources import ImageEntry, RawData, Source

class MySource(Source):
    def read(self):
        return RESULT

class Unfinished(Source):
    pass

def read_it(root: str):
    return None
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Iterator[Path]:
    """The current folder, not on Python's path; modules imported from it are removed afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_sources.MySorce", r"^own_sources has no MySorce. Did you mean own_sources.MySource\?$"),
        ("own_sorces.MySource", r"^the module own_sorces, .* does not exist\. Did you mean own_sources\? Run the"),
        ("own_sources.read_it", r"does not extend itr.data.sources.Source. own_sources has MySource, Unfinished\."),
        ("own_sources.Unfinished", r"own_sources.Unfinished does not define read; src/itr/data/sources/README.md"),
        ("itr.data.sources.Source", r"itr.data.sources.Source does not extend itr.data.sources.Source"),
        ("faulty_sources.MySource", r"^could not import faulty_sources, .*: NameError: name 'nothing' is not defined$"),
        ("needy_sources.MySource", r"^could not import needy_sources, .*: ModuleNotFoundError: No module named "),
    ],
)  # fmt: skip
def test_a_mistyped_source_name_gives_one_message(here, name, message):
    (here / "own_sources.py").write_text(SOURCES)
    (here / "faulty_sources.py").write_text("nothing")
    (here / "needy_sources.py").write_text("import not_there")
    with pytest.raises(UserError, match=message):
        prepare(["prepare", name, "--out=x"])


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("None", r"own_sources.MySource.read\(\) returned .* NoneType; it must return itr.data.sources.RawData"),
        ("RawData('.', [ImageEntry('a.jpg', ['x'])])", "the entries of own_sources.MySource are of the type list"),
        ("RawData('.', {'train': [ImageEntry('a.jpg', 'a caption')]})", "entry 0 of the split train .*'a caption'"),
        ("RawData('.', {'train': ['a.jpg']})", "entry 0 of the split train .* of the type str; give an"),
        ("RawData('.', {'train': [ImageEntry('a.jpg', ['x'])]})", r"there is no folder|a\.jpg"),
    ],
)  # fmt: skip
def test_the_result_of_a_source_is_checked(here, capsys, result, message):
    (here / "own_sources.py").write_text(SOURCES.replace("RESULT", result))
    assert main(["prepare", "own_sources.MySource", f"--out={here / 'out'}", "--num_workers=1"]) == 1
    printed = capsys.readouterr().err
    assert re.search(message, printed), printed
    assert not (here / "out").exists() or not list((here / "out").rglob("*.tar"))


def test_the_current_folder_is_searched_only_for_named_classes(here):
    (here / "own_part.py").write_text("")
    (here / "own_folder").mkdir()
    (here / "own_folder" / "part.py").write_text("")
    before = list(sys.path)
    add_current_folder(["elsewhere.Class", "runs.v2", "own_folder.missing.Class"])
    resolve_configs(["fit", "own_part", "--data.root=own_part/shards", "--trainer.max_epochs", "3"])
    assert sys.path == before  # no class path among these
    resolve_configs(["fit", "--model.methods+={class_path: own_part.Class}"])
    assert sys.path == [*before, str(here)]
    sys.path[:] = before
    add_current_folder(["own_folder.part.Class"])
    assert sys.path == [*before, str(here)]


def test_a_file_in_the_current_folder_does_not_replace_a_module(here):
    for name in ("torch", "colorsys", "own_part"):
        (here / f"{name}.py").write_text(
            "raise SystemExit('not this one')" if name != "own_part" else "import colorsys"
        )
    add_current_folder(["torch.nn.Linear", "colorsys.x"])
    assert str(here) not in sys.path
    sys.modules.pop("colorsys", None)
    assert Path(import_module_of_user("own_part", "the test").colorsys.__file__).parent != here


def test_a_config_imports_the_classes_of_its_model_and_no_others(here):
    for name in ("own_backbone", "own_method", "own_callback"):
        (here / f"{name}.py").write_text("")
    (here / "run.yaml").write_text(
        "trainer: {callbacks: [{class_path: own_callback.Thing}]}\n"
        "model:\n  backbone: {class_path: own_backbone.Mine, init_args: {tokenizer: own_callback.x}}\n"
        "  objective: InfoNCE\n  methods+: [{class_path: own_method.Mine}]\n"
    )
    import_config_classes("run.yaml")
    assert {"own_backbone", "own_method"} <= set(sys.modules)
    assert "own_callback" not in sys.modules
    (here / "run.yaml").write_text("model: {objective: own_objektive.Mine}")
    with pytest.raises(UserError, match=r"^the module own_objektive, which run.yaml names, does not exist\. "):
        import_config_classes("run.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("config", ["names it", "does not name it", "is missing"])
def test_a_checkpoint_alone_imports_nothing_and_the_message_says_what_to_do(here, scenes, config, monkeypatch):
    """Not even the modules named in a config next to it: both files may be untrusted."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(here)])  # as in a program started from this folder
    (here / "own_part.py").write_text("raise SystemExit('imported')")
    folder = here / "a run" / "checkpoints"
    folder.mkdir(parents=True)
    path = save_checkpoint(folder, scenes)
    saved = torch.load(path, weights_only=True)
    saved["hyper_parameters"]["backbone"]["class_path"] = "own_part.Mine"
    torch.save(saved, path)
    beside = folder.parent / "config.yaml"
    if config != "is missing":
        name = "own_part.Mine" if config == "names it" else "VSE"
        beside.write_text(f"model: {{backbone: {{class_path: {name}}}}}")
    typed = f"'{beside}'" if config == "names it" else "FILE, the config that names it"
    with pytest.raises(UserError, match="not part of itr") as refusal:
        open_checkpoint(path)
    assert f"add --config {typed};" in str(refusal.value)
    for verb in (
        ["test", f"--trainer.default_root_dir={folder.parent}", f"--data.root={scenes}", f"--ckpt_path={path}"],
        ["embed", f"--ckpt_path={path}", f"--data={scenes}", f"--out={here / 'e.npz'}"],
        ["report", str(folder.parent), f"--data={scenes}"],
    ):
        main(verb)
    assert "own_part" not in sys.modules


def test_a_deleted_current_folder_is_no_error(here):
    (here / "gone").mkdir()
    os.chdir(here / "gone")
    (here / "gone").rmdir()
    before = list(sys.path)
    add_current_folder(["own_part.Class"])
    assert sys.path == before
