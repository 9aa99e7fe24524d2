"""Command lines: missing and mistaken options take one line, and a part of a config replaces earlier ones."""

from __future__ import annotations

import io
import sys

import pytest

from itr.cli import main
from itr.commands.configs import resolve_configs
from itr.commands.parsing import in_words
from itr.errors import UserError
from itr.runs.command import TrainingCLI
from tiny import TINY_VSE


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ("prepare", ["give SOURCE, one of table, flickr30k, coco, camoit, mag, scenes", "`itr prepare --help`"]),
        ("prepare table", ["give --root and --out", "`itr prepare table --help`"]),
        ("data show", ["give SHARDS", "`itr data show --help`"]),
        ("prepare mag --name=moovies", ["name is moovies; it must be movies, toys, ", "`itr prepare mag --help`"]),
        ("embed --texts", ["--texts needs a value: file with one caption per line, or - for", "`itr embed --help`"]),
        ("report a --embeddings", ["--embeddings needs a value: precomputed embeddings, one .npz file", "`itr rep"]),
        ("prepare table --root", ["--root needs a value: a table, or a folder with one table", "`itr prepare table"]),
        ("fit --data.root", ["--data.root needs a value", "`itr fit --help`"]),
        ("prepare table --num_workers=many", ["num_workers is many; it must be a whole number or null", "`itr prep"]),
    ],
)
def test_missing_and_mistaken_options_are_named_as_users_give_them(capsys, options, lines):
    with pytest.raises(SystemExit) as exit_:
        main(options.split())
    assert exit_.value.code == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert told[0].startswith(f"itr: error: {lines[0]}")
    assert told[1].startswith(lines[1])


def test_only_simple_errors_of_a_value_are_reworded():
    nested = (
        'Parser key "model":\n  Problem with given class_path \'VSE\':\n    Parser key "dim":\n      Expected a <class'
    )
    assert in_words(nested) == nested
    text = "Parser key \"a.b\":\n  Expected a typing.Literal['x', 'y']. Got value: two\nlines"
    assert in_words(text) == "Parser key \"a.b\":\n  Expected a typing.Literal['x', 'y']. Got value: two\nlines"


@pytest.mark.slow
def test_likely_slips_come_with_a_suggestion(tmp_path, capsys):
    (tmp_path / "typo.yaml").write_text("data: {batch_sise: 3}")
    for options, hint in (
        ([f"--config={tmp_path / 'typo.yaml'}"], "--data.batch_size"),
        (["demo.yaml"], "--config demo.yaml"),
        (["--data", "shards"], "--data.root shards"),
    ):
        with pytest.raises(SystemExit):
            main(["fit", *options])
        assert f"id you mean {hint}" in capsys.readouterr().err


def test_invalid_yaml_is_named_with_file_and_line(tmp_path):
    (tmp_path / "bad.yaml").write_text("data:\n  root: [a\n")
    with pytest.raises(UserError, match=r"bad\.yaml, line \d, is not valid YAML: "):
        resolve_configs(["fit", "--config", str(tmp_path / "bad.yaml")])


@pytest.mark.slow
@pytest.mark.parametrize("form", [["--model.backbone={}"], ["--model.backbone", "{}"]])
def test_a_part_replaces_earlier_settings(tmp_path, form):
    """The parser itself would keep other settings of the same class."""
    part = tmp_path / "part.yaml"
    towers = [option.partition("=")[2] for option in TINY_VSE[1:3]]
    part.write_text(
        f"class_path: VSE\ninit_args:\n  vision_config: {towers[0]}\n  text_config: {towers[1]}\n  dim: 16\n"
    )
    config = tmp_path / "config.yaml"
    config.write_text("model: {backbone: {class_path: VSE, init_args: {image_size: 64, vision: nowhere}}}")
    before = [f"--config={config}"]
    after = ["--model.backbone.word_mask=0.5"]
    given = [*before, *(text.format(part) for text in form), *after]
    settings = TrainingCLI(resolve_configs(given), run=False).model.backbone.init_args
    assert (settings["image_size"], settings["vision"]) == (None, None)
    assert (settings["dim"], settings["word_mask"]) == (16, 0.5)


def test_devices_that_are_not_a_number_are_refused(tmp_path):
    with pytest.raises(UserError, match="`devices`"):
        TrainingCLI([*TINY_VSE, "--trainer.accelerator=cpu", "--trainer.devices=many"], run=False)


def test_a_line_appears_in_a_log_when_it_is_printed(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8"))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    main(["data", "verify", "nowhere"])
    print("a line")
    assert written.getvalue() == b"a line\n"
