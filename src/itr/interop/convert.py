"""`itr convert METHOD FILE --out OUT.ckpt`: a published checkpoint into one of ours."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from itr.errors import UserError
from itr.module import RetrievalModule
from itr.parsing import FriendlyParser

log = logging.getLogger(__name__)


def convert_cusa(file: str, out: str, text_heads: int | None = None, overwrite: bool = False) -> None:
    """A checkpoint of CUSA's authors, with CLIP inside.

    Args:
        file: the published checkpoint.
        out: the checkpoint to write, OUT.ckpt.
        text_heads: attention heads of the text tower, which the file does not tell; by default one for 64 channels,
            as in every CLIP that OpenAI published.
        overwrite: replace a file that is there.
    """
    from itr.interop import cusa

    target = _target(out, overwrite)
    save(cusa.convert(Path(file), text_heads), target)


def convert_d2s(file: str, out: str, overwrite: bool = False) -> None:
    """A checkpoint of D2S-VSE's authors, of its second stage.

    Args:
        file: the published checkpoint.
        out: the checkpoint to write, OUT.ckpt.
        overwrite: replace a file that is there.
    """
    from itr.interop import d2s

    target = _target(out, overwrite)
    save(d2s.convert(Path(file)), target)


METHODS: dict[str, Callable[..., None]] = {"cusa": convert_cusa, "d2s": convert_d2s}


def save(module: RetrievalModule, path: Path) -> None:
    """Write a checkpoint that `RetrievalModule.load_from_checkpoint` and `--ckpt_path` open.

    It holds the weights and how to build the model, and no state of a training: `fit --ckpt_path` starts anew from it.
    """
    checkpoint: dict[str, Any] = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": version("lightning"),
        "state_dict": module.state_dict(),
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
    }
    module.on_save_checkpoint(checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    torch.save(checkpoint, part)
    os.replace(part, path)
    log.info("wrote %s", path)


def main(arguments: list[str]) -> None:
    """Parse the command line and convert one file."""
    parser = FriendlyParser(prog="itr", description="Read published checkpoints.")
    verbs = parser.add_subcommands(required=True, metavar="VERB")
    convert = FriendlyParser(description="Turn a published checkpoint into one of ours.")
    verbs.add_subcommand("convert", convert)
    methods = convert.add_subcommands(required=True, dest="method", metavar="METHOD")
    for name, function in METHODS.items():
        line = (function.__doc__ or "").strip().splitlines()[0]
        method = FriendlyParser(description=line)
        method.add_argument("file", type=str, help="the published checkpoint")
        method.add_function_arguments(function, skip={"file"})
        methods.add_subcommand(name, method, help=line)
    chosen = parser.parse_args(arguments).convert
    METHODS[chosen.method](**chosen[chosen.method].as_dict())


def _target(out: str, overwrite: bool) -> Path:
    path = Path(out)
    if path.exists() and not overwrite:
        raise UserError(f"{path} is there already; give another --out, or --overwrite=true")
    return path
