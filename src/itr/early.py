"""Mistakes of a command line that can be reported at once, before torch is imported or a hub is asked.

What is not found here is found later, by the parser and by the parts that use the options.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from itr.commands import inputs
from itr.commands.configs import find_config
from itr.commands.verbs import FUNCTION_VERBS, parse
from itr.data.shards.patterns import split_list
from itr.files.writing import file_to_write
from itr.runs.early import SPLITS, check_root, check_run, check_split
from itr.weights.early_names import check_model_name
from itr.weights.packages import Kind

ENDINGS = {"embed": (".npz",), "evaluate": (".json",), "report": (".html", ".htm"), "convert": ()}  # of `--out`
FOLDERS = ("images", "features", "plausible", "root")
MODELS = ("model", "tokenizer")


def check_early(arguments: list[str]) -> None:
    """Check the command line of a verb as far as that takes no time; `--help` is printed.

    Raises:
        UserError: a file or folder does not exist, options do not go together, or the run folder is in use.
        WrongOptionError: an option of a training verb does not exist.
        SystemExit: the help was printed, or the parser refused the command line.
    """
    verb = arguments[0]
    if verb in FUNCTION_VERBS:
        name, values = parse(arguments)
        _check_options(verb, name, values)
        _check_paths(verb, name, values)
    elif verb in SPLITS:
        check_run(arguments)


def _check_options(verb: str, name: str, values: Mapping[str, Any]) -> None:
    """Which options go together, and where the results go."""
    if verb in ENDINGS and values["out"] is not None:
        target = file_to_write(values["out"], *ENDINGS[verb])
        if verb == "convert":
            inputs.check_overwrite(target, values["overwrite"])
    numbers = {key: values[key] for key in ("batch_size", "tile") if key in values}
    inputs.check_at_least(1, **numbers)
    if verb == "embed":
        inputs.chosen_model(values["ckpt_path"], values["model"])
        inputs.check_embed(values["data"], values["images"], values["texts"])
    elif verb == "features":
        inputs.check_teacher(values["model"], values["from_npy"])
    elif verb == "report":
        inputs.check_report(len(values["runs"]), len(values["embeddings"] or ()))
        inputs.check_at_least(0, pictures=values["pictures"])
    elif name in ("sts", "images"):
        inputs.chosen_model(values["ckpt_path"], values["model"])
    elif verb == "evaluate":
        model = values["ckpt_path"] or values["model"]
        inputs.check_scored(values["embeddings"], model, values["data"])
        if name == "transfer":
            inputs.check_transfer(model, values["data"])


def _kind(name: str, given: Mapping[str, Any]) -> Kind | None:
    """What a named model has to embed; None for both."""
    kinds: dict[str, Kind] = {"sts": "text", "images": "vision", "image": "vision", "text": "text"}
    sides = [side for side in ("images", "texts") if side in given]
    alone = sides[0].removesuffix("s") if len(sides) == 1 else ""
    return kinds.get(name) or kinds.get(given.get("modality", alone))


def _check_paths(verb: str, name: str, values: Mapping[str, Any]) -> None:
    """That the local files and folders exist."""
    given = {key: value for key, value in values.items() if value is not None}
    for config in given.get("config", ()):
        find_config(config)
    for run in given.get("runs", ()):
        inputs.check_run_folder(Path(run).expanduser())
    for key in ("ckpt_path", "file"):
        if key in given:
            inputs.check_checkpoint(given[key])
    for key in [key for key in FOLDERS if key in given]:
        inputs.check_folder(f"--{key}", given[key])
    for key in [key for key in MODELS if key in given]:
        inputs.check_local(f"--{key}", given[key])
    files = given.get("embeddings", ())
    for file in [files] if isinstance(files, str) else files:
        inputs.check_file("--embeddings", file)
    if "from_npy" in given:
        inputs.check_file("--from_npy", given["from_npy"])
    if "texts" in given:
        inputs.check_texts(given["texts"])
    if "data" in given:
        check_root(given["data"])
        names = split_list(given["splits"], given["data"]) if "splits" in given else [given["split"]]
        for name in names:
            check_split(given["data"], name)
    for folder in given.get("further", ()):
        check_root(folder)
        check_split(folder, given["split"])
    if given.get("modality") != "dense":  # whose model is a checkpoint
        check_model_name(given.get("model"), _kind(name, given))
