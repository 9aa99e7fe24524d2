"""Compile the towers with `torch.compile`, for a small number of input shapes."""

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

GRAPHS = 64  # most graphs that torch may compile per function: all towers share one, and each length needs a graph
COMPILERS = {"cpu": ("C++", "CXX", ("g++", "clang++")), "cuda": ("C", "CC", ("gcc", "clang"))}  # Inductor, Triton
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compilation:
    """What to compile during training; evaluation is not compiled, because its batch sizes vary.

    It does not affect checkpoints or results, except for rounding and the order of dropout draws. Each new shape takes
    about a minute to compile when it first occurs.

    Args:
        towers: compile both towers with `torch.compile`.
        lengths: with `towers`, captions are padded to the next of these numbers of tokens, or to the maximum of the
            tower, instead of the longest caption of the batch.
    """

    towers: bool = False
    lengths: tuple[int, ...] = (16, 24, 32, 48, 64, 96, 128, 256)

    def __post_init__(self) -> None:
        """Check that the lengths ascend."""
        if not all(a < b for a, b in pairwise((0, *self.lengths))):
            raise UserError(
                f"compilation.lengths is {list(self.lengths)}; give numbers of tokens in ascending order, 1 or more"
            )

    def begin(self, module: nn.Module) -> None:
        """Mark the towers of all backbones in a model to be compiled when they are first called.

        Raises:
            UserError: this machine has no compiler.
        """
        if not self.towers:
            return
        check_compiler(next(module.parameters()).device.type, "compilation.towers")
        # torch accesses .grad itself while it traces the output of another module.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        torch.compiler.config.recompile_limit = max(torch.compiler.config.recompile_limit, GRAPHS)
        for backbone in _backbones(module):
            backbone.lengths = self.lengths
            parts = _parts(backbone)
            if not parts:
                log.warning("compilation.towers has no effect: %s has no module to compile", type(backbone).__name__)
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
        """Run a model without compilation and without padding captions to fixed lengths."""
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
    return [part for part in backbone.compilable() if not isinstance(part, nn.Identity)]  # a frozen copy lacks some


def check_compiler(device: str, setting: str) -> None:
    """Check that this machine has the host compiler that torch needs for compilation, also on a GPU.

    Args:
        device: `cpu` or `cuda`, where the compiled code will run; other devices are not checked.
        setting: the setting that requires it, for the message.

    Raises:
        UserError: the compiler or Python's headers are missing.
    """
    if device not in COMPILERS:
        return
    language, variable, usual = COMPILERS[device]
    names = [os.environ.get(variable) or usual[0], *usual[1:]]
    if not any(shutil.which(name) for name in names):
        raise UserError(
            f"{setting} needs a {language} compiler on {device}, but none of {', '.join(names)} was found; install "
            f"one, or turn {setting} off"
        )
    header = Path(sysconfig.get_path("include"), "Python.h")
    if device == "cuda" and not header.is_file():
        raise UserError(
            f"{setting} needs the Python headers on {device}, but {header} is missing; install python3-dev, or turn "
            f"{setting} off"
        )
