"""Mistakes of a command line and missing local files are reported before torch is imported."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import lightning.pytorch as pl
import pytest

from itr.commands.signatures import PACKAGE, parameters, trainer_parameters
from itr.errors import UserError, WrongOptionError
from itr.runs.early import COMPONENTS, FUNCTIONS, HINTS, check_early
from itr.runs.run_folder import FolderLock

SOURCES = [*FUNCTIONS.values(), *COMPONENTS.values(), *(source for group in HINTS.values() for source in group)]


@pytest.mark.parametrize(("file", "name"), SOURCES, ids=str)
def test_the_arguments_in_the_source_are_those_of_the_object(file, name):
    found = getattr(import_module("itr." + file.removesuffix(".py").replace("/", ".")), name)
    wanted = {n: p.default is p.empty for n, p in inspect.signature(found).parameters.items()}
    if dataclasses.is_dataclass(found):
        missing = dataclasses.MISSING
        required = {f.name for f in dataclasses.fields(found) if (f.default, f.default_factory) == (missing, missing)}
        wanted = {n: n in required for n in wanted}
    assert parameters(PACKAGE / file, name) == wanted


def test_the_arguments_of_the_trainer_are_found():
    assert trainer_parameters().keys() == inspect.signature(pl.Trainer).parameters.keys()
    assert parameters(Path(__file__), "Nothing") == {}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("embed", "give --ckpt_path and --out"),
        ("embed --ckpt_path a --out b --splitt c", "unrecognized arguments: --splitt c; did you mean --split?"),
        ("features --modality image --data x", "give --out"),
        ("fit --model.lr 0.1", "unrecognized arguments: --model.lr 0.1; did you mean --model.optimizer.lr?"),
        ("fit --model.dim=3", "unrecognized arguments: --model.dim=3; did you mean --model.backbone.dim?"),
        ("fit --model.optimizer.lrr=1", "unrecognized arguments: --model.optimizer.lrr=1; did you mean --model.opti"),
        ("fit --trainer.max_epoch 1", "unrecognized arguments: --trainer.max_epoch 1; did you mean --trainer.max_ep"),
        ("test --data.batch_siz=8", "unrecognized arguments: --data.batch_siz=8; did you mean --data.batch_size?"),
    ],
)
def test_an_option_that_does_not_exist_or_is_missing_is_named(command, message):
    with pytest.raises(WrongOptionError) as refused:
        check_early(command.split())
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("fit --config coco_cusa.yaml", "the shard folder shards/coco does not exist"),  # of the config that it names
        ("fit --config coco_cusa.yaml --data.root {scenes} --data.val_split vla", "has no split 'vla' (it has: test, "),
        ("fit --data.root {scenes} --data.features {scenes}/none", "data.features is "),
        ("fit --data.root {scenes} --ckpt_path none.ckpt", "the checkpoint none.ckpt does not exist"),
        ("predict --data.root {scenes} --data.predict_split=no", "has no split 'no'"),
        ("fit --config none_such.yaml", "the config file 'none_such.yaml' does not exist"),
        ("embed --ckpt_path none.ckpt --out a.npz", "the checkpoint none.ckpt does not exist"),
        ("densify --model m --data nowhere", "the shard folder nowhere does not exist"),
    ],
)
def test_a_local_file_that_does_not_exist_is_named(scenes, monkeypatch, tmp_path, command, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        check_early(command.format(scenes=scenes).split())
    assert message in str(refused.value)


def test_a_run_folder_that_is_in_use_or_holds_a_run_is_refused(scenes, monkeypatch, tmp_path):
    fit = ["fit", f"--data.root={scenes}", "--trainer.default_root_dir", str(tmp_path)]
    lock = FolderLock()
    lock.hold(tmp_path)
    with pytest.raises(UserError, match="another `itr fit` is training in"):
        check_early(fit)
    check_early([*fit, "--trainer.fast_dev_run=true"])
    monkeypatch.setenv("RANK", "1")  # another process of the run that holds the lock
    check_early(fit)
    monkeypatch.delenv("RANK")
    lock.release()
    check_early(fit)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(UserError, match="already holds a run"):
        check_early(fit)
    for more in ("--ckpt_path=last", "--overwrite=true"):
        check_early([*fit, more])
    with pytest.raises(UserError, match=r"has no best\.ckpt to measure"):
        check_early(["test", *fit[1:]])


@pytest.mark.parametrize(
    "command",
    [
        "fit --help",
        "fit --print_config --data.root nowhere",
        "fit --data.root https://host/shards",
        "fit --data.root a/{{000..009}}.tar --data.val_split b.tar",
        "fit --data.root {scenes} --data.val_split null --trainer.callbacks+=Timer --trainer.callbacks.interval=x",
        "fit --model.backbone=Wrong",
        "test --model.backbone=CLIP --model.backbone.anything=1 --data.root {scenes} --ckpt_path best",
        "report nowhere",
    ],
)
def test_what_only_later_parts_can_judge_is_left_to_them(scenes, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    check_early(command.format(scenes=scenes).split())


def test_torch_is_not_imported_for_a_message():
    code = (
        "import sys; from itr.cli import main\n"
        "assert main(['fit', '--config', 'coco_cusa.yaml']) == 1\n"
        "assert main(['embed', '--ckpt_path', 'none', '--out', 'a.npz']) == 1\n"
        "assert not {'torch', 'lightning', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
