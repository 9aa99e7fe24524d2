"""Mistakes of a command line that can be reported at once, before torch is imported or a hub is asked.

What is not found here is found later, by the parser and by the parts that use the options.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from itr.commands.configs import config_folder, resolve_configs
from itr.commands.launchers import is_first_process, started_again
from itr.commands.near_matches import near_options
from itr.commands.order import Option, options_in
from itr.commands.parsing import with_hint
from itr.commands.signatures import PACKAGE, parameters, trainer_parameters
from itr.data.shards.locations import find_split, normalize_root
from itr.data.shards.patterns import names_tars
from itr.data.shards.remote import is_url
from itr.data.shards.schema import MANIFEST
from itr.errors import UserError, WrongOptionError
from itr.files.documents import read_yaml_document
from itr.files.writing import file_to_write
from itr.runs.run_folder import (
    FolderLock,
    check_new_run,
    checkpoint_names,
    refuse_without_best,
)

SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
FUNCTIONS = {
    "embed": ("embedding/command.py", "embed"),
    "features": ("passes/features.py", "make_features"),
    "densify": ("passes/densify.py", "densify"),
}
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


def check_early(arguments: list[str]) -> None:
    """Check the command line of a verb as far as that takes no time.

    Raises:
        UserError: a file or folder does not exist, or the run folder is in use.
        WrongOptionError: an option does not exist or is missing.
    """
    verb = arguments[0]
    if any(word in ("-h", "--help") or word.startswith("--print_config") or ".help" in word for word in arguments):
        return
    if verb in SPLITS:
        _check_run(verb, options_in(resolve_configs(arguments))[1:])
    elif verb in FUNCTIONS:
        _check_function(*FUNCTIONS[verb], options_in(arguments)[1:])


def _check_function(file: str, name: str, given: Sequence[Option]) -> None:
    known = parameters(PACKAGE / file, name)
    values = {option.key.rstrip("+"): option.value for option in given}
    for option in given:
        key = option.key.rstrip("+")
        if key and "." not in key and key not in {*known, "config"}:
            raise WrongOptionError(_unknown(option, known))
    missing = [f"--{key}" for key, required in known.items() if required and key not in values]
    if missing:
        raise WrongOptionError(f"give {' and '.join(missing)}")
    if name == "embed":
        file_to_write(values["out"], ".npz")
    if checkpoint := values.get("ckpt_path"):
        _check_file(checkpoint)
    if data := values.get("data"):
        _check_root(data)


def _check_run(verb: str, given: Sequence[Option]) -> None:
    """Check a verb of the training command line; `given` are its options after the names of configs are resolved."""
    _check_names(given)
    settings = _settings(given)
    data, trainer = settings.get("data"), settings.get("trainer")
    data, trainer = data if isinstance(data, dict) else {}, trainer if isinstance(trainer, dict) else {}
    root = Path(str(trainer.get("default_root_dir", "runs/itr"))).expanduser()
    wanted = settings.get("ckpt_path")
    if wanted not in (None, "null", "best", "last", "auto") and "://" not in str(wanted):
        _check_file(str(wanted))
    if verb != "fit" and wanted in (None, "null"):
        refuse_without_best(root)
    if verb == "fit" and not trainer.get("fast_dev_run") and is_first_process() and not started_again():
        lock = FolderLock()
        if root.is_dir():
            lock.hold(root)
            lock.release()
        saves = str(trainer.get("enable_checkpointing")).lower() != "false"
        check_new_run(root, wanted not in (None, "null"), str(settings.get("overwrite")).lower() == "true", saves)
    _check_data(verb, data)


def _check_data(verb: str, data: Mapping[str, Any]) -> None:
    shards = data.get("root")
    if not isinstance(shards, str):  # by default a folder that may not exist: a wrong option is the better message
        return
    _check_root(shards)
    folder = normalize_root(shards)
    for split in SPLITS[verb]:
        name = data.get(f"{split}_split", "test" if split == "predict" else split)
        plain = isinstance(name, str) and name not in ("", "null") and not (names_tars(name) or is_url(name))
        if plain and not is_url(folder) and not names_tars(folder) and Path(folder, MANIFEST).is_file():
            find_split(folder, name, strict=False)
    features = data.get("features")
    if isinstance(features, str) and features != "null" and not Path(features).expanduser().is_dir():
        raise UserError(f"data.features is {features}, a folder that does not exist; `itr features` makes it")


def _check_root(root: str) -> None:
    folder = normalize_root(root)
    if not is_url(folder) and not names_tars(folder) and not Path(folder).is_dir():
        raise UserError(f"the shard folder {folder} does not exist; `itr prepare --help` shows how to make one")


def _check_file(checkpoint: str) -> None:
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        beside = f" (in {path.parent}: {checkpoint_names(path.parent)})" if path.parent.is_dir() else ""
        raise UserError(f"the checkpoint {checkpoint} does not exist{beside}")


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


def _all_names(groups: Mapping[str, Iterable[str]]) -> list[str]:
    found = [f"{group}.{name}" for group, names in groups.items() for name in names]
    for group, sources in HINTS.items():
        found += [f"{group}.{name}" for file, cls in sources for name in parameters(PACKAGE / file, cls)]
    return list(dict.fromkeys(found))


def _unknown(option: Option, known: Iterable[str]) -> str:
    text = f"unrecognized arguments: {' '.join(option.words)}"
    return with_hint(text, [f"--{name}" for name in near_options(option.key.rstrip("+"), known)])


def _settings(given: Iterable[Option]) -> dict[str, Any]:
    """What configs and options set, as far as it is known without the parser: later ones win."""
    found: dict[str, Any] = {}
    for option in given:
        if option.key == "config":
            _merge(found, _expanded(read_yaml_document(Path(option.value)), Path(option.value).parent))
        elif option.key == "data" and option.value.endswith(".yaml"):
            _merge(found, {"data": read_yaml_document(Path(option.value))})
        elif option.key and not option.key.endswith("+"):
            *groups, name = option.key.split(".")
            value: dict[str, Any] = {name: option.value}
            for group in reversed(groups):
                value = {group: value}
            _merge(found, value)
    return found


def _expanded(content: Any, folder: Path) -> dict[str, Any]:
    """The content of a config with the file that its `data` names."""
    if not isinstance(content, dict):
        return {}
    data = content.get("data")
    if isinstance(data, str):
        files = [base / data for base in (folder, Path(), config_folder())]
        file = next((path for path in files if path.is_file()), None)
        content = {**content, "data": read_yaml_document(file) if file else {}}
    return dict(content)


def _merge(found: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(found.get(key), dict):
            _merge(found[key], value)
        else:
            found[key] = value
