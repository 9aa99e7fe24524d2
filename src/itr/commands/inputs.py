"""Rules about what a verb is given: which options go together, and local files that must exist.

Nothing here imports torch, so that a mistake is reported at once; the functions of the verbs ask the same rules.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from itr.errors import UserError

RUN_FILES = ("best.ckpt", "last.ckpt")  # of a run folder, preferred first
LOCAL = ("/", "./", "../", "~")  # begins the names that can only be paths


def check_embed(data: str | None, images: str | None, texts: str | None) -> None:
    """What `itr embed` embeds: shards, or images and texts; UserError otherwise."""
    if (data is None) == (images is None and texts is None):
        raise UserError("give --data SHARDS, or --images FOLDER or --texts FILE or both")


def chosen_model(ckpt_path: str | None, model: str | None) -> str:
    """The name of the model that `--ckpt_path` or `--model` gives.

    Raises:
        UserError: both or neither is given.
    """
    if (ckpt_path is None) == (model is None):
        raise UserError("give --ckpt_path CHECKPOINT or --model NAME, one of the two")
    return str(ckpt_path or model)


def check_scored(embeddings: str | None, model: str | None, data: str | None) -> None:
    """What a protocol of pairs scores: a file of embeddings, or a model on shards; UserError otherwise."""
    if (embeddings is None) == (data is None) or (data is not None and model is None):
        raise UserError("give either --embeddings FILE, or --ckpt_path CKPT or --model NAME, and --data SHARDS")


def check_transfer(model: str | None, data: str | None) -> None:
    """That there is a model to embed every data set with; UserError otherwise."""
    if model is None or data is None:
        raise UserError(
            "transfer embeds every data set with one model: give --ckpt_path CKPT or --model NAME, and --data SHARDS, "
            "not --embeddings"
        )


def check_teacher(model: str | None, from_npy: str | None) -> None:
    """Where `itr features` takes features from: a model or a file; UserError otherwise."""
    if model is not None and from_npy is not None:
        raise UserError("--from_npy already contains the features; remove --model")
    if model is None and from_npy is None:
        raise UserError("--model is missing; `itr features --help` lists the models")


def check_at_least(least: int, **numbers: int) -> None:
    """Numbers by the name of their option; UserError for one that is smaller than `least`."""
    for name, number in numbers.items():
        if number < least:
            raise UserError(f"--{name} is {number}; it must be {least} or more")


def check_report(runs: int, embeddings: int) -> None:
    """That there is one file of embeddings for each run, or none at all; UserError otherwise."""
    if embeddings and embeddings != runs:
        files, folders = (f"{n} {what}{'s' * (n != 1)}" for n, what in ((embeddings, "file"), (runs, "run")))
        raise UserError(f"--embeddings names {files} for {folders}; give one file per run")


LEAST = {  # values of the data module
    "batch_size": 1, "eval_batch_size": 1, "num_workers": 0, "shuffle_buffer": 0, "max_skipped": 0, "max_bad_shards": 0,
    "max_pixels": 1,
}  # fmt: skip


def check_loading(numbers: Mapping[str, int], captions: int | Literal["all"], texts: str) -> None:
    """Refuse settings of `data` that are too small or do not go together.

    Args:
        numbers: values of `LEAST`, also of `batch_size`.
        captions: captions of an image in a batch.
        texts: `captions` or `dense`.
    """
    for name, value in numbers.items():
        if value < LEAST[name]:
            raise UserError(f"data.{name} is {value}; it must be {LEAST[name]} or more")
    batch_size = numbers["batch_size"]
    if captions != "all" and (captions < 1 or batch_size % captions):
        raise UserError(f"data.captions is {captions}; it must be 1 or more and divide batch_size = {batch_size}")
    if texts == "dense" and captions == "all":
        raise UserError("data.captions is 'all', which applies only to sparse captions; with dense ones set it to 1")


def check_overwrite(path: Path, overwrite: bool) -> None:
    """Refuse to replace a file without being asked to."""
    if path.exists() and not overwrite:
        raise UserError(f"{path} already exists; choose another --out, or pass --overwrite=true")


def check_folder(option: str, folder: str | Path) -> None:
    """Refuse what is not a folder, by the name of its option."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        problem = "is a file; give the folder that contains it" if path.is_file() else "does not exist"
        raise UserError(f"{option}: the folder {folder} {problem}")


def check_file(option: str, file: str | Path) -> None:
    """Refuse what is not a file, by the name of its option."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"{option}: {file} is a folder; give a file" if path.is_dir() else f"{option}: the file {file} "
                        "does not exist")  # fmt: skip


def check_run_folder(folder: Path) -> None:
    """Refuse a run folder that does not exist."""
    if not folder.is_dir():
        raise UserError(f"the run folder {folder} does not exist")


def check_checkpoint(checkpoint: str) -> None:
    """Refuse a path that is not a file, and name the checkpoints beside it."""
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        others = f" (in {path.parent}: {checkpoint_names(path.parent)})" if any(path.parent.glob("*.ckpt")) else ""
        raise UserError(f"the checkpoint {checkpoint} does not exist{others}")


def check_one_start(ckpt_path: str, options: Iterable[str]) -> None:
    """Refuse `--model.weights` on the command line of a run that resumes; in its config it only says how it began."""
    if "--model.weights" in options:
        raise UserError(
            f"--model.weights starts a new run, and --ckpt_path {ckpt_path} resumes one, with all its state: remove one"
        )


def checkpoint_names(folder: Path) -> str:
    """The names of the checkpoints in a folder, for messages."""
    return ", ".join(sorted(path.name for path in folder.glob("*.ckpt"))) or "none"


def check_texts(texts: str) -> None:
    """Refuse what cannot be read as lines of text; `-` is standard input."""
    path = Path(texts).expanduser()
    found = errno.EISDIR if path.is_dir() else 0 if path.exists() else errno.ENOENT
    if texts != "-" and found:  # it may be a pipe, which is opened only once
        raise unreadable_texts(texts, OSError(found, os.strerror(found)))


def unreadable_texts(texts: str, error: OSError) -> UserError:
    """The error for lines of text that cannot be read."""
    return UserError(
        f"--texts takes a file with one caption per line, or - for standard input; could not read {texts}: "
        f"{error.strerror or error}"
    )


def check_stage1(file: str) -> None:
    """Refuse a first stage of D2S that does not exist."""
    if not Path(file).is_file():
        raise UserError(
            f"D2S.stage1: the file {file!r} does not exist. Train the first stage with `itr fit --config "
            "f30k_d2s_stage1.yaml`, or with your own config and --data.texts=dense, and give the checkpoint that "
            "it writes; or set stage1 to null"
        )


def starting_checkpoint(place: Path) -> Path:
    """The file that `--model.weights` names, which may be a run folder.

    Raises:
        UserError: there is no checkpoint.
    """
    if not place.is_dir():
        if not place.is_file():
            raise UserError(f"model.weights: {place} is neither a checkpoint nor a run folder")
        return place
    found = [folder / name for folder in (place / "checkpoints", place) for name in RUN_FILES]
    for file in found:
        if file.is_file():
            return file
    raise UserError(f"model.weights: the folder {place} has no checkpoint; expected {found[0]} or {found[1]}")


def check_unicom(path: str | Path) -> None:
    """Refuse a weights file of UNICOM that does not exist."""
    if not Path(path).is_file():
        raise UserError(
            f"weights file {path} does not exist; download FP16-ViT-B-32.pt (ViT-B/32, which CUSA uses) from "
            "https://github.com/deepglint/unicom/releases and pass its path as --model unicom:PATH"
        )


def check_local(option: str, name: str) -> None:
    """Refuse the name of a model that can only be a path, if there is nothing at that path.

    Args:
        option: for the message.
        name: a path, a name of a hub, or either of them after `open_clip:`, `timm:` or `unicom:`.
    """
    kind, colon, rest = name.partition(":")
    if kind == "unicom":
        check_unicom(rest)
    place = rest if colon and kind in ("open_clip", "timm") else name
    place = place.removeprefix("local-dir:")
    if kind == "open_clip":  # MODEL/FILE
        place = place if place.startswith(LOCAL) else place.partition("/")[2]
    is_path = place.startswith(LOCAL) or "local-dir:" in name
    if is_path and not os.path.exists(os.path.expanduser(place)):
        raise UserError(f"{option} is {name}, but {place} does not exist")
