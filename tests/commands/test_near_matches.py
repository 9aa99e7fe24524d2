"""Mistyped classes and options are reported in one line, with what may have been meant."""

from __future__ import annotations

import pytest

from itr.cli import main
from itr.commands.near_matches import near_options, unknown_class


def refusal(capsys, *options: str) -> list[str]:
    """The lines that a command with these options prints before it exits."""
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *options])
    assert exit_.value.code == 2
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.backbone", "VSEE"], "model.backbone: the class VSEE does not exist; did you mean VSE?"),
        (["--model.objective=InfoNCEE"], "model.objective: the class InfoNCEE does not exist; did you mean InfoNCE?"),
        (
            ["--model.backbone=itr.backbones.vse.VSEE"],
            "model.backbone: the class itr.backbones.vse.VSEE does not exist; did you mean itr.backbones.vse.VSE?",
        ),
        (["--model.methods+=CUSSA"], "model.methods: the class CUSSA does not exist; did you mean CUSA?"),
        (
            ["--model.methods+=itr.method.CUSA"],  # the module is mistyped
            "model.methods: the class itr.method.CUSA does not exist; did you mean CUSA?",
        ),
        (["--model.methods+=nowhere.Nothing"], "model.methods: the class nowhere.Nothing does not exist"),
        (
            ["--trainer.callbacks+=EarlyStoping"],
            "trainer.callbacks: the class EarlyStoping does not exist; did you mean EarlyStopping?",
        ),
        (["--model.lr", "0.1"], "unrecognized arguments: --model.lr 0.1; did you mean --model.optimizer.lr?"),
    ],
)
def test_a_mistyped_name_on_the_command_line_gets_a_near_match_in_one_line(capsys, options, message):
    assert refusal(capsys, *options) == [f"itr: error: {message}", "`itr fit --help` lists the options."]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            "model: {methods: [{class_path: itr.methods.CUSAA}]}",
            "model.methods: the class itr.methods.CUSAA does not exist; did you mean itr.methods.CUSA?",
        ),
        (
            "model: {backbone: {class_path: VSEE, init_args: {dim: 3}}}",
            "model.backbone: the class VSEE does not exist; did you mean VSE?",
        ),
        ("model: {lr: 0.1}", "Subcommand 'fit' does not accept option 'model.lr'; did you mean --model.optimizer.lr?"),
    ],
)
def test_a_mistyped_name_in_a_config_gets_a_near_match_in_one_line(tmp_path, capsys, config, message):
    (tmp_path / "typo.yaml").write_text(config)
    assert refusal(capsys, f"--config={tmp_path / 'typo.yaml'}")[0] == f"itr: error: {message}"


def test_a_module_that_fails_to_import_is_not_called_a_class_that_does_not_exist():
    text = "Parser key \"model.backbone\":\n  Problem with given class_path 'mine.Net':\n    No module named '{}'"
    assert unknown_class(text.format("elsewhere")) == ""
    assert unknown_class(text.format("mine")).startswith("model.backbone: the class mine.Net does not exist")


OPTIONS = ["model", "model.optimizer.lr", "model.optimizer.eps", "data.batch_size", "data.eval_batch_size", "lr_steps"]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("model.lr", ["model.optimizer.lr"]),
        ("lr", ["model.optimizer.lr"]),
        ("model.optimizer.lrr", ["model.optimizer.lr"]),
        ("batch_size", ["data.batch_size"]),  # the same last part wins over a similar one
        ("data.batch_siz", ["data.batch_size"]),
        ("model.zzz", []),
    ],
)
def test_options_are_compared_by_their_last_part(name, near):
    assert near_options(name, OPTIONS) == near
