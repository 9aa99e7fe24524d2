"""What the command line sets wins over files, wherever it is given."""

from __future__ import annotations

import pytest

from itr.cli import main
from itr.commands.order import files_first, options_in, present_names


@pytest.mark.parametrize(
    ("given", "ordered"),
    [
        ("fit --data.batch_size 7 --config a.yaml", "fit --config a.yaml --data.batch_size 7"),
        ("fit --config a.yaml --seed 1 --config=b.yaml", "fit --config a.yaml --config=b.yaml --seed 1"),
        ("fit --seed 1 -c a.yaml", "fit -c a.yaml --seed 1"),
        ("fit --data.root x --data d.yaml", "fit --data d.yaml --data.root x"),
        ("fit --model.objective.margin 1 --model.objective T", "fit --model.objective T --model.objective.margin 1"),
        # Options after an appended item belong to that item, so these stay where they are.
        ("fit --m+=A --m.x 1 --m+=B --m.x 2", "fit --m+=A --m.x 1 --m+=B --m.x 2"),
        ("fit --a 1 --a 2 stray --b -3", "fit --a 1 --a 2 stray --b -3"),
        ("--a.b 1 --a x", "--a x --a.b 1"),
        ("", ""),
    ],
)
def test_files_come_first_and_the_rest_keeps_its_order(given, ordered):
    assert files_first(given.split()) == ordered.split()


def test_an_option_takes_the_value_after_it():
    found = {option.key: option.value for option in options_in(["fit", "--a", "1", "--b=2=3", "--flag", "--c", "-1"])}
    assert found == {"": "", "a": "1", "b": "2=3", "flag": "", "c": "-1"}


@pytest.mark.slow
@pytest.mark.parametrize("form", [["--config={}"], ["--config", "{}"]])
def test_an_option_wins_over_a_config_after_it_and_configs_refine_one_another(tmp_path, capsys, form):
    (tmp_path / "one.yaml").write_text("data: {batch_size: 5, captions: 1, shuffle_buffer: 11}\nseed_everything: 3")
    (tmp_path / "two.yaml").write_text("data: {batch_size: 6, max_skipped: 9}\ntrainer: {max_epochs: 4}")
    configs = [part.format(tmp_path / name) for name in ("one.yaml", "two.yaml") for part in form]
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--trainer.max_epochs", "2", "--data.max_skipped=7", *configs, "--print_config"])
    assert exit_.value.code == 0
    printed = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for line in ("max_epochs: 2", "max_skipped: 7", "batch_size: 6", "shuffle_buffer: 11", "seed_everything: 3"):
        assert line in printed


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("features --split val", "features --splits val"),
        ("densify --splits=a,b", "densify --splits=a,b"),
        ("embed --splits val --data=x=y", "embed --split val --data=x=y"),
        ("evaluate coco --split val", "evaluate coco --split val"),
        ("test --split=val", "test --data.test_split=val"),
        ("validate --splits val", "validate --data.val_split val"),
        ("predict --split val", "predict --data.predict_split val"),
        ("prepare table --splits val", "prepare table --splits val"),  # of the raw data
        ("fit --split val", "fit --split val"),  # which has several
    ],
)
def test_a_split_has_one_name_in_all_verbs(given, named):
    assert present_names(given.split()) == named.split()
