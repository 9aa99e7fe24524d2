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
from itr.commands.verbs import FUNCTION_VERBS
from itr.early import check_early
from itr.errors import UserError, WrongOptionError
from itr.runs.early import COMPONENTS, HINTS
from itr.runs.run_folder import FolderLock

SOURCES = [*COMPONENTS.values(), *(source for group in HINTS.values() for source in group)]
SOURCES += [source for verb in FUNCTION_VERBS.values() for source in verb.functions.values()]


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
        ("embed", "give --out"),
        ("embed --ckpt_path a --out b --splitt c", "unrecognized arguments: --splitt c; did you mean --split?"),
        ("features --modality image --data x", "give --out"),
        ("features --modality images --data x --out y", "modality is images; it must be image, text or dense"),
        ("evaluate", "give PROTOCOL, one of coco, eccv, cxc, transfer, sts, images"),
        ("evaluate cocoo", "invalid choice: 'cocoo'"),
        ("evaluate eccv", "give --out"),
        ("evaluate sts --root a --out b.json --batch_size x", "batch_size is x; it must be a whole number"),
        ("evaluate coco --out a --plausible b", "unrecognized arguments: --plausible b"),
        ("convert cusa --out a.ckpt", "give FILE"),
        ("convert d2s a --out b --overwrite c", "overwrite is c; it must be true or false"),
        ("report --pictures many runs/a", "pictures is many; it must be a whole number"),
        ("fit --data.batch_size=abc", "data.batch_size is abc; it must be a whole number"),
        ("test --trainer.limit_test_batches x", "trainer.limit_test_batches is x; it must be a whole number, a number"),
        ("fit --overwrite=true --watch.max_bad_steps 1.5", "watch.max_bad_steps is 1.5; it must be a whole number"),
        ("fit --data.texts all", "data.texts is all; it must be captions or dense"),
    ],
)
def test_the_parser_refuses_a_command_line_at_once(capsys, command, message):
    with pytest.raises(SystemExit) as refused:
        check_early(command.split())
    assert refused.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["embed", "features", "densify", "report", "evaluate sts", "convert d2s"])
def test_the_help_of_verbs_with_functions_is_that_of_the_function(capsys, command):
    verb, _, name = command.partition(" ")
    file, function = FUNCTION_VERBS[verb].functions[name]
    found = getattr(import_module("itr." + file.removesuffix(".py").replace("/", ".")), function)
    with pytest.raises(SystemExit) as shown:
        check_early([*command.split(), "--help"])
    assert shown.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert found.__doc__.splitlines()[0] in text
    given = inspect.signature(found).parameters
    for name, parameter in given.items():
        assert name in text
        if isinstance(parameter.default, str):
            assert f"default: {parameter.default})" in text.replace("- ", "-")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("fit --config coco_cusa.yaml", "the shard folder shards/coco does not exist"),  # of the config that it names
        ("fit --config coco_cusa.yaml --data.root {scenes} --data.val_split vla", "has no split 'vla' (it has: test, "),
        ("fit --data.root {scenes} --data.features {scenes}/none", "data.features is "),
        ("fit --data.root {scenes} --ckpt_path none.ckpt", "the checkpoint none.ckpt does not exist"),
        ("predict --data.root {scenes} --data.predict_split=no", "has no split 'no'"),
        ("fit --config none_such.yaml", "the config file 'none_such.yaml' does not exist"),
        ("densify --model m --data nowhere", "the shard folder nowhere does not exist"),
        ("densify --model ./none --data {scenes}", "--model is ./none, but ./none does not exist"),
        ("densify --model m --data {scenes} --splits trian", "has no split 'trian' (it has: test, train, val)"),
        (
            "fit --config small.yaml --data.batch_size=4",
            "data.captions is 5; it must be 1 or more and divide batch_size",
        ),
        ("test --data.num_workers=-1", "data.num_workers is -1; it must be 0 or more"),
        ("fit --data.texts dense --data.captions=all", "data.captions is 'all', which applies only to sparse captions"),
        ("embed --ckpt_path none.ckpt --out a.npz", "give --data SHARDS, or --images FOLDER"),
        ("embed --ckpt_path none.ckpt --out a.npz --texts a", "the checkpoint none.ckpt does not exist"),
        ("embed --ckpt_path {here} --out a.npz --texts a", "could not read a: No such file or directory"),
        ("embed --ckpt_path {here} --out a.npz --images a", "--images: the folder a does not exist"),
        ("embed --ckpt_path {here} --out a.npz --data {scenes} --split no", "has no split 'no'"),
        ("embed --ckpt_path {here} --out a.npy --texts a", "--out is a.npy; give a name that ends in .npz"),
        ("features --modality text --data {scenes} --out a", "--model is missing"),
        (
            "features --modality text --data {scenes} --out a --model /none",
            "--model is /none, but /none does not exist",
        ),
        (
            "features --modality image --data {scenes} --out a --model unicom:a.pt",
            "weights file a.pt does not exist; download",
        ),
        ("features --modality image --data {scenes} --out a --model timm:local-dir:b", "but b does not exist"),
        ("features --modality image --data {scenes} --out a --model open_clip:ViT-B-32//a.pt", "/a.pt does not exist"),
        ("features --modality image --data {scenes} --out a --from_npy b.npy", "the file b.npy does not exist"),
        (
            "evaluate coco --out a.json",
            "give either --embeddings FILE, or --ckpt_path CKPT or --model NAME, and --data SHARDS",
        ),
        ("evaluate coco --out a.json --embeddings none.npz", "--embeddings: the file none.npz does not exist"),
        ("evaluate transfer --out a.json --embeddings {here}", "transfer embeds every data set with one model"),
        (
            "evaluate transfer --out a.json --ckpt_path {here} --data {scenes} --further [none]",
            "the shard folder none does not exist",
        ),
        ("evaluate sts --root nowhere --out a.json --model b", "--root: the folder nowhere does not exist"),
        ("evaluate sts --root . --out a.json", "give --ckpt_path CHECKPOINT or --model NAME, one of the two"),
        ("evaluate images --root . --out a.json --model b --tile 0", "--tile is 0; it must be 1 or more"),
        ("evaluate cxc --out a.txt --embeddings {here}", "--out is a.txt; give a name that ends in .json"),
        ("evaluate cxc --out a.json --embeddings {here} --config none.yaml", "the config file 'none.yaml' does not"),
        ("convert cusa none.pt --out a.ckpt", "the checkpoint none.pt does not exist"),
        ("convert d2s {here} --out {here}", "already exists; choose another --out"),
        ("report nowhere", "the run folder nowhere does not exist"),
        ("report . --embeddings a.npz b.npz", "--embeddings names 2 files for 1 run; give one file per run"),
        ("report . --out a.pdf", "--out is a.pdf; give a name that ends in .html"),
        ("fit --data.root {scenes} --model.weights none", "model.weights: none is neither a checkpoint nor a run"),
        ("fit --data.root {scenes} --model.weights=.", "model.weights: the folder . has no checkpoint"),
        ("fit --data.root {scenes} --config f30k_d2s.yaml", "D2S.stage1: the file 'runs/f30k_d2s_stage1/"),
        ("fit --data.root {scenes} --model.methods+=CUSA --model.methods.teachers.text=./a", "./a does not exist"),
        (
            "fit --data.root {scenes} --model.backbone=VSE --model.backbone.vision=/a",
            "model.backbone.vision is /a, but",
        ),
        ("fit --data.root {scenes} --ckpt_path last", "the checkpoint runs/itr/checkpoints/last.ckpt does not exist"),
    ],
)
def test_a_local_file_that_does_not_exist_is_named(scenes, monkeypatch, tmp_path, command, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        check_early(command.format(scenes=scenes, here=__file__).split())
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
        "test --model.backbone=CLIP --model.backbone.anything=1 --data.root {scenes}",
        "test --data.root {scenes} --model.backbone.vision=/none --model.weights=none",
        "fit --data.root {scenes} --trainer=unknown --ckpt_path=last",
        "fit --data.root {scenes} --ckpt_path=auto --model.weights=none",
        "fit --data.root {scenes} --trainer.default_root_dir=null",
        "fit --data.root {scenes} --config f30k_d2s.yaml --model.methods=[]",
        "fit --data.root {scenes} --trainer.max_epochs=null --trainer.limit_val_batches=0.5 --data.captions=all",
        "embed --ckpt_path {here} --out a.npz --texts -",
        "features --modality text --data {scenes} --out a --model {scenes}",
        "report .",
    ],
)
def test_what_only_later_parts_can_judge_is_left_to_them(scenes, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    check_early(command.format(scenes=scenes, here=__file__).split())


def test_parts_that_are_written_out_or_name_a_file_are_understood(scenes, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "part.yaml").write_text(f"default_root_dir: {tmp_path / 'run'}\n")
    (tmp_path / "all.yaml").write_text(f"trainer: part.yaml\ndata: {{root: {scenes}}}\n")
    shards = f"--data.root={scenes}"
    for given in (
        [shards, f"--trainer={tmp_path / 'part.yaml'}"],
        [shards, f'--trainer={{"default_root_dir": "{tmp_path / "run"}"}}'],
        [f'--data={{"root": "{scenes}"}}', "--trainer.default_root_dir", str(tmp_path / "run")],
        [f"--config={tmp_path / 'all.yaml'}"],
    ):
        check_early(["fit", *given, "--ckpt_path=last"])
        with pytest.raises(UserError, match="already holds a run"):
            check_early(["fit", *given])


def test_torch_is_not_imported_for_a_message():
    code = (
        "import sys; from itr.cli import main\n"
        "assert main(['fit', '--config', 'coco_cusa.yaml']) == 1\n"
        "assert main(['embed', '--ckpt_path', 'none', '--out', 'a.npz']) == 1\n"
        "assert main(['report', 'none']) == main(['convert', 'cusa', 'none', '--out', 'a']) == 1\n"
        "assert main(['evaluate', 'images', '--root', 'none', '--out', 'a.json', '--model', 'b']) == 1\n"
        "assert not {'torch', 'lightning', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
