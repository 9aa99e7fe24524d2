"""Names of models that cannot be loaded here, reported before torch is imported.

What is not found here is found when the model is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from glob import escape
from pathlib import Path
from typing import Any

from itr.errors import UserError
from itr.weights.hub import is_path, unreachable, ways_out, why_unreachable
from itr.weights.packages import Kind, find_package, is_packaged

NAMED: dict[str, Kind | None] = {  # settings that name a model, and what it embeds
    "vision": "vision",
    "image": "vision",
    "text": "text",
    "tokenizer": "text",
    "pretrained": None,
}
OTHER_KINDS = ("unicom", "local-dir")  # before a colon; what follows is a path


def check_model_settings(settings: Any) -> None:
    """Check the names of towers and teachers in the settings of a model, as configs and options give them.

    Raises:
        UserError: a package is not installed, or the hub is needed and cannot be reached.
    """
    if not isinstance(settings, Mapping):
        return
    methods = settings.get("methods")
    for part in (settings.get("backbone"), *(methods if isinstance(methods, list) else [])):
        if isinstance(part, Mapping):
            inner = part.get("init_args")
            arguments = {**(inner if isinstance(inner, Mapping) else {}), **part}
            teachers = arguments.get("teachers")
            for found in (arguments, teachers if isinstance(teachers, Mapping) else {}):
                for key in NAMED.keys() & found.keys():
                    check_model_name(found[key], NAMED[key], is_tag=key == "pretrained")


def check_model_name(name: Any, kind: Kind | None = None, is_tag: bool = False) -> None:
    """Check the name of one model.

    Args:
        name: the name; what is not a text, and null, is none.
        kind: what it embeds.
        is_tag: whether it is a tag of open_clip.

    Raises:
        UserError: as `check_model_settings`.
    """
    if not isinstance(name, str) or name in ("", "null") or name.endswith(".ckpt"):
        return
    if is_packaged(name):
        find_package(name, kind)
        return
    path = name
    while (before := name.partition(":")[0]) in ("open_clip", "timm", "hf-hub"):
        name = name.partition(":")[2]
        is_tag = before == "open_clip"
        path = name.partition("/")[2] if is_tag else name  # MODEL/FILE
    if before in OTHER_KINDS or is_path(path):
        return
    if any(_cached(name, is_tag)) or why_unreachable() is None:
        return
    raise UserError(f"could not load {name}: {unreachable()}. {ways_out(kind)}")


def _cached(name: str, is_tag: bool) -> Iterator[Path]:
    """What a cache has of a name, as far as its files show: of which repository a tag is, only open_clip knows."""
    from huggingface_hub import constants

    hub, name = Path(constants.HF_HUB_CACHE), escape(name)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if is_tag:
        yield from hub.glob("models--*")
        yield from (Path.home() / ".cache/clip").glob("*")
        return
    yield from hub.glob(f"models--{name.replace('/', '--')}")
    if "/" not in name:
        yield from hub.glob(f"models--sentence-transformers--{name}")
        yield from hub.glob(f"models--timm--{name}*")
        torch = Path(os.environ.get("TORCH_HOME") or home / "torch")
        yield from (torch / "hub/checkpoints").glob(f"{name}*")
