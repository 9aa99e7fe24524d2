"""`itr convert KIND FILE --out OUT.ckpt`: convert a published checkpoint, or one with adapters, into one of ours."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from itr.backbones.towers.training import merge_adapters
from itr.checkpoints import open_checkpoint
from itr.commands.inputs import check_overwrite
from itr.commands.verbs import parse
from itr.errors import UserError
from itr.files.writing import file_to_write, whole_file
from itr.module import RetrievalModule

log = logging.getLogger(__name__)


def convert_cusa(file: str, out: str, text_heads: int | None = None, overwrite: bool = False) -> None:
    """Convert a checkpoint of CUSA's authors, which contains a CLIP.

    Args:
        file: the published checkpoint.
        out: the checkpoint to write, OUT.ckpt.
        text_heads: attention heads of the text tower, which the file does not define; by default one per 64 channels,
            as in every CLIP that OpenAI published.
        overwrite: replace an existing file.
    """
    from itr.interop import cusa

    target = _target(out, overwrite)
    save_converted(cusa.read_cusa_model(Path(file), text_heads), target)


def convert_d2s(file: str, out: str, tokenizer: str = "bert-base-uncased", overwrite: bool = False) -> None:
    """Convert a checkpoint of D2S-VSE's authors, of either stage.

    Args:
        file: the published checkpoint.
        out: the checkpoint to write, OUT.ckpt.
        tokenizer: name or folder of the text tower's tokenizer, which the file does not contain.
        overwrite: replace an existing file.
    """
    from itr.interop import d2s

    target = _target(out, overwrite)
    save_converted(d2s.read_d2s_model(Path(file), tokenizer=tokenizer), target)


def convert_lora(file: str, out: str, overwrite: bool = False) -> None:
    """Fold the low-rank adapters of an itr checkpoint into the weights of its towers, so that peft is not needed.

    Args:
        file: a checkpoint of a run with `vision_lora` or `text_lora`.
        out: the checkpoint to write, OUT.ckpt.
        overwrite: replace an existing file.
    """
    target = _target(out, overwrite)
    module = open_checkpoint(file)
    if not merge_adapters(module.backbone):
        raise UserError(f"{file} has no low-rank adapters to merge; use it as it is")
    module.backbone.init_args |= dict.fromkeys(("vision_lora", "text_lora"))
    save_converted(module, target)


CONVERTERS: dict[str, Callable[..., None]] = {"cusa": convert_cusa, "d2s": convert_d2s, "lora": convert_lora}


def save_converted(module: RetrievalModule, path: Path) -> None:
    """Write a checkpoint for `RetrievalModule.load_from_checkpoint` and `--ckpt_path`.

    It has the weights and the model's description but no training state: `fit --ckpt_path` starts training from scratch
    with these weights.
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
    with whole_file(path) as file:
        torch.save(checkpoint, file)
    log.info("wrote %s", path)


def main(arguments: list[str]) -> None:
    """Parse the command line and convert one file."""
    name, values = parse(arguments)
    CONVERTERS[name](**values)


def _target(out: str, overwrite: bool) -> Path:
    path = file_to_write(out)
    check_overwrite(path, overwrite)
    return path
