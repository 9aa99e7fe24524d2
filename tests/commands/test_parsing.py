"""Command lines: what is missing or mistaken is told in a line, and a part of a config stands for itself."""

from __future__ import annotations

import io
import sys

import pytest

from itr.cli import main
from itr.commands.config_files import resolve_configs
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
        ("prepare table --num_workers=many", ["num_workers is many; it must be a whole number or null", "`itr prep"]),
    ],
)
def test_what_is_missing_or_mistaken_is_told_as_it_is_given(capsys, options, lines):
    with pytest.raises(SystemExit) as exit_:
        main(options.split())
    assert exit_.value.code == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert told[0].startswith(f"itr: error: {lines[0]}")
    assert told[1].startswith(lines[1])


def test_only_plain_faults_of_a_value_are_put_in_words():
    nested = (
        'Parser key "model":\n  Problem with given class_path \'VSE\':\n    Parser key "dim":\n      Expected a <class'
    )
    assert in_words(nested) == nested
    text = "Parser key \"a.b\":\n  Expected a typing.Literal['x', 'y']. Got value: two\nlines"
    assert in_words(text) == "Parser key \"a.b\":\n  Expected a typing.Literal['x', 'y']. Got value: two\nlines"


def test_slips_that_a_verb_invites_come_with_what_was_meant(tmp_path, capsys):
    (tmp_path / "typo.yaml").write_text("data: {batch_sise: 3}")
    for options, hint in (
        ([f"--config={tmp_path / 'typo.yaml'}"], "--data.batch_size"),
        (["demo.yaml"], "--config demo.yaml"),
        (["--data", "shards"], "--data.root shards"),
    ):
        with pytest.raises(SystemExit):
            main(["fit", *options])
        assert f"Did you mean {hint}" in capsys.readouterr().err


def test_a_config_that_is_no_yaml_is_named_with_the_line(tmp_path):
    (tmp_path / "bad.yaml").write_text("data:\n  root: [a\n")
    with pytest.raises(UserError, match=r"bad\.yaml, line \d, is no YAML: "):
        resolve_configs(["fit", "--config", str(tmp_path / "bad.yaml")])


@pytest.mark.parametrize("form", [["--model.backbone={}"], ["--model.backbone", "{}"]])
def test_a_part_takes_the_place_of_what_was_said_before(tmp_path, form):
    """The parser alone would keep the other settings of the same class."""
    part = tmp_path / "part.yaml"
    towers = [option.partition("=")[2] for option in TINY_VSE[1:3]]
    part.write_text(
        f"class_path: VSE\ninit_args:\n  vision_config: {towers[0]}\n  text_config: {towers[1]}\n  dim: 16\n"
    )
    before = ["--model.backbone=VSE", "--model.backbone.image_size=64", "--model.backbone.vision=nowhere"]
    after = ["--model.backbone.word_mask=0.5"]
    given = [*before, *(text.format(part) for text in form), *after]
    settings = TrainingCLI(resolve_configs(given), run=False).model.backbone.init_args
    assert (settings["image_size"], settings["vision"]) == (None, None)
    assert (settings["dim"], settings["word_mask"]) == (16, 0.5)


def test_devices_that_are_no_number_are_refused(tmp_path):
    with pytest.raises(UserError, match="`devices`"):
        TrainingCLI([*TINY_VSE, "--trainer.accelerator=cpu", "--trainer.devices=many"], run=False)


def test_a_line_shows_in_a_log_when_it_is_printed(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8"))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    main(["data", "verify", "nowhere"])
    print("a line")
    assert written.getvalue() == b"a line\n"
