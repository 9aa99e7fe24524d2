"""Mistakes of a training command line that can be reported at once: see `itr.early`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from itr.commands.configs import resolve_configs
from itr.commands.given import is_true, settings_of, texts_in
from itr.commands.inputs import (
    LEAST,
    check_checkpoint,
    check_loading,
    check_local,
    check_one_start,
    check_stage1,
    starting_checkpoint,
)
from itr.commands.near_matches import near_options
from itr.commands.order import Option, options_in
from itr.commands.parsing import FriendlyParser, with_hint
from itr.commands.process import is_first_process, started_again
from itr.commands.signatures import PACKAGE, parameters, trainer_parameters, trainer_source, typed_outline
from itr.data.shards.locations import find_split, normalize_root
from itr.data.shards.patterns import names_tars
from itr.data.shards.remote import is_url
from itr.data.shards.schema import MANIFEST
from itr.errors import UserError, WrongOptionError
from itr.runs.run_folder import (
    RUN_FOLDER,
    FolderLock,
    check_new_run,
    refuse_without_best,
)
from itr.weights.early_names import check_model_settings

SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
NAMED = ("best", "last")  # checkpoints of the run folder
COMPONENTS = {  # groups of options and where their names are defined
    "data": ("data/datamodule.py", "ShardData"),
    "model": ("module.py", "RetrievalModule"),
    "model.optimizer": ("training/optim.py", "OptimizerSettings"),
    "checkpoint": ("runs/checkpoints/settings.py", "CheckpointSettings"),
    "watch": ("runs/watch.py", "Watch"),
}
HINTS = {  # groups whose options depend on a class: for hints only
    "model.backbone": [("backbones/vse.py", "VSE"), ("backbones/clip.py", "CLIP")],
    "model.objective": [("objectives.py", name) for name in ("InfoNCE", "Triplet", "Sigmoid")],
}


def check_run(arguments: list[str]) -> None:
    """Check the command line of fit, validate, test or predict as far as that takes no time.

    Raises:
        UserError: a file or folder does not exist, or the run folder is in use.
        WrongOptionError: an option does not exist.
    """
    if any(word in ("-h", "--help") or word.startswith("--print_config") or ".help" in word for word in arguments):
        return
    _check_run(arguments[0], options_in(resolve_configs(arguments))[1:])


def _check_run(verb: str, given: Sequence[Option]) -> None:
    """Check a verb of the training command line; `given` are its options after the names of configs are resolved."""
    _check_names(given)
    _check_types(verb, given)
    settings = settings_of(given)
    data, trainer = settings.get("data"), settings.get("trainer")
    if any(isinstance(part, str) for part in (data, trainer)):  # which only the parser understands
        return
    data, trainer = data or {}, trainer or {}
    root = Path(_set(trainer.get("default_root_dir")) or RUN_FOLDER).expanduser()
    wanted = settings.get("ckpt_path")
    resumes = wanted not in (None, "null") or started_again()
    if verb == "fit" and wanted not in (None, "null", "auto") and not started_again():
        check_one_start(str(wanted), [f"--{option.key}" for option in given])
    if wanted not in (None, "null", *NAMED, "auto") and "://" not in str(wanted):
        check_checkpoint(str(wanted))
    if verb != "fit" and wanted in (None, "null"):
        refuse_without_best(root)
    if wanted in NAMED and not any((root / "checkpoints").glob("*.ckpt")):
        check_checkpoint(str(root / "checkpoints" / f"{wanted}.ckpt"))
    if verb == "fit" and not trainer.get("fast_dev_run") and is_first_process() and not started_again():
        lock = FolderLock()
        if root.is_dir():
            lock.hold(root)
            lock.release()
        saves = str(trainer.get("enable_checkpointing")).lower() != "false"
        check_new_run(root, wanted not in (None, "null"), is_true(settings.get("overwrite")), saves)
    _check_data(verb, data)
    if verb == "fit" and not resumes:
        for name, text in texts_in({"model": settings.get("model")}):
            _check_model_path(name, text)
        check_model_settings(settings.get("model"))


def _set(value: Any) -> str:
    """A setting as a text; empty if it is not set."""
    return "" if value in (None, "null") else str(value)


def _check_model_path(name: str, text: str) -> None:
    """Refuse a local file or folder of a new model that does not exist."""
    last = name.rpartition(".")[2]
    if text == "null":
        return
    if name == "model.weights":
        starting_checkpoint(Path(text).expanduser())
    elif last == "stage1":
        check_stage1(text)
    elif last in ("vision", "text", "image", "tokenizer", "model", "pretrained"):
        check_local(name, text)


def _check_data(verb: str, data: Mapping[str, Any]) -> None:
    file, name = COMPONENTS["data"]
    defaults = {n: p.default for n, p in signature(typed_outline(PACKAGE / file, name)).parameters.items()}
    values = {key: _number(data.get(key, default)) for key, default in defaults.items()}
    captions = values["captions"]
    if all(isinstance(values[key], int) for key in LEAST) and (captions == "all" or isinstance(captions, int)):
        check_loading({key: values[key] for key in LEAST}, captions, str(values["texts"]))
    shards = data.get("root")
    if not isinstance(shards, str):  # by default a folder that may not exist: a wrong option is the better message
        return
    check_root(shards)
    for split in SPLITS[verb]:
        name = data.get(f"{split}_split", "test" if split == "predict" else split)
        if isinstance(name, str) and name not in ("", "null"):
            check_split(shards, name)
    features = data.get("features")
    if isinstance(features, str) and features != "null" and not Path(features).expanduser().is_dir():
        raise UserError(f"data.features is {features}, a folder that does not exist; `itr features` makes it")


def _number(value: Any) -> Any:
    """A value, which on the command line is a text, as a whole number if it is one."""
    text = str(value)
    return int(text) if text.removeprefix("-").isdecimal() and not isinstance(value, bool) else value


def check_root(root: str) -> None:
    """Refuse a shard folder that does not exist."""
    folder = normalize_root(root)
    if not is_url(folder) and not names_tars(folder) and not Path(folder).is_dir():
        raise UserError(f"the shard folder {folder} does not exist; `itr prepare --help` shows how to make one")


def check_split(root: str, name: str) -> None:
    """Refuse a split that the manifest of a local folder does not have; lists of tars are left to the reader."""
    folder = normalize_root(root)
    listed = any(names_tars(place) or is_url(place) for place in (name, folder))
    if not listed and Path(folder, MANIFEST).is_file():
        find_split(folder, name, strict=False)


def _check_names(given: Iterable[Option]) -> None:
    """Refuse options that no class defines."""
    groups = {"trainer": trainer_parameters()}
    groups |= {group: parameters(PACKAGE / file, name) for group, (file, name) in COMPONENTS.items()}
    for option in given:
        key = option.key.rstrip("+")
        group = max((g for g in groups if key.startswith(f"{g}.") and groups[g]), key=len, default=None)
        if group is None:
            continue
        name = key.removeprefix(f"{group}.").partition(".")[0]
        if name not in groups[group] and f"{group}.{name}" not in groups:
            raise WrongOptionError(_unknown(option, _all_names(groups)))


def _check_types(verb: str, given: Iterable[Option]) -> None:
    """Refuse values of the wrong type, as the parser of the verb does once it can be built."""
    groups = {"trainer": trainer_source(), **{group: (PACKAGE / file, n) for group, (file, n) in COMPONENTS.items()}}
    parser = FriendlyParser(prog=f"itr {verb}")
    known: set[str] = set()
    for group, (file, name) in groups.items():
        if file.is_file():
            typed = typed_outline(file, name)
            parser.add_function_arguments(typed, group)
            known |= {f"{group}.{argument}" for argument in signature(typed).parameters}
    parser.parse_args([word for option in given if option.key in known for word in option.words])


def _all_names(groups: Mapping[str, Iterable[str]]) -> list[str]:
    found = [f"{group}.{name}" for group, names in groups.items() for name in names]
    for group, sources in HINTS.items():
        found += [f"{group}.{name}" for file, cls in sources for name in parameters(PACKAGE / file, cls)]
    return list(dict.fromkeys(found))


def _unknown(option: Option, known: Iterable[str]) -> str:
    text = f"unrecognized arguments: {' '.join(option.words)}"
    return with_hint(text, [f"--{name}" for name in near_options(option.key.rstrip("+"), known)])
