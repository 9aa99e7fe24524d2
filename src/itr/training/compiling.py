"""`torch.compile` of the towers, with few shapes to compile for."""

from __future__ import annotations

import logging
import os
import shutil
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from itr.backbones.base import Backbone
from itr.errors import UserError
from itr.private_api.torch import forget_compiled

GRAPHS = 64  # that torch may compile of one function: all towers share one, and each length is a graph
COMPILERS = {"cpu": ("C++", "CXX", ("g++", "clang++")), "cuda": ("C", "CC", ("gcc", "clang"))}  # inductor's, Triton's
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compilation:
    """What is compiled while a model is trained; evaluation runs as it is written, whatever the sizes of its batches.

    Neither checkpoint nor results depend on it, beyond rounding and the order in which dropout draws. Each new shape
    is compiled for a minute or so the first time it comes.

    Args:
        towers: compile both towers with `torch.compile`.
        lengths: with `towers`: captions are padded to the next of these numbers of tokens, or to the longest that the
            tower takes, rather than to the longest of their batch.
    """

    towers: bool = False
    lengths: tuple[int, ...] = (16, 24, 32, 48, 64, 96, 128, 256)

    def __post_init__(self) -> None:
        """Refuse what can't be, before anything is built."""
        if not all(a < b for a, b in pairwise((0, *self.lengths))):
            raise UserError(f"compilation.lengths is {list(self.lengths)}; give numbers of tokens that ascend from 1")

    def begin(self, module: nn.Module) -> None:
        """Compile the towers of all backbones in a model, each at its first call.

        Raises:
            UserError: this machine has nothing to compile with.
        """
        if not self.towers:
            return
        check_compiler(next(module.parameters()).device.type, "compilation.towers")
        # torch looks at it itself while it traces what another part gave.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        torch.compiler.config.recompile_limit = max(torch.compiler.config.recompile_limit, GRAPHS)
        for backbone in _backbones(module):
            backbone.lengths = self.lengths
            parts = _parts(backbone)
            if not parts:
                log.warning("compilation.towers: %s has no part that is compiled", type(backbone).__name__)
            for part in parts:
                part.compile(dynamic=False)

    def end(self, module: nn.Module) -> None:
        """Undo `begin`."""
        for backbone in _backbones(module) if self.towers else []:
            backbone.lengths = ()
            for part in _parts(backbone):
                forget_compiled(part)

    @contextmanager
    def suspended(self, module: nn.Module) -> Iterator[None]:
        """Run a model as it is written and captions as they come."""
        backbones = _backbones(module) if self.towers else []
        before = [backbone.lengths for backbone in backbones]
        for backbone in backbones:
            backbone.lengths = ()
        try:
            with torch.compiler.set_stance("force_eager" if self.towers else "default"):
                yield
        finally:
            for backbone, lengths in zip(backbones, before, strict=True):
                backbone.lengths = lengths


def _backbones(module: nn.Module) -> list[Backbone]:
    return [part for part in module.modules() if isinstance(part, Backbone)]


def _parts(backbone: Backbone) -> list[nn.Module]:
    return [part for part in backbone.compilable() if not isinstance(part, nn.Identity)]  # what a frozen copy lacks


def check_compiler(device: str, setting: str) -> None:
    """Refuse to compile on a machine where torch can't: its own code needs a compiler that starts it, on a GPU too.

    Args:
        device: `cpu` or `cuda`, where what is compiled will run; others are left to torch.
        setting: who wants it, for the message.

    Raises:
        UserError: there is no such compiler, or none of Python's headers.
    """
    if device not in COMPILERS:
        return
    language, variable, usual = COMPILERS[device]
    names = [os.environ.get(variable) or usual[0], *usual[1:]]
    if not any(shutil.which(name) for name in names):
        raise UserError(f"{setting} needs a {language} compiler on {device}, and there is none of {', '.join(names)}")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if device == "cuda" and not header.is_file():
        raise UserError(f"{setting} needs the headers of Python on {device}: {header} is missing (python3-dev has it)")
