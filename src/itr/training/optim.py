"""AdamW with parameter groups, and a learning rate schedule with warm-up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import nn

from itr.errors import UserError


@dataclass
class OptimizerSettings:
    """Settings of AdamW and of the learning rate schedule.

    Attributes:
        lr: peak learning rate of heads and objective.
        tower_lr_factor: the learning rate of the towers is `lr` times this factor.
        weight_decay: weight decay of weight matrices; biases, norms and temperatures have none.
        betas: decay rates of AdamW's moving averages.
        eps: epsilon of AdamW.
        schedule: decay of the learning rate after warm-up: `cosine`, `linear`, `steps` or `constant`.
        warmup: fraction of all steps (below 1) or number of steps (1 or more) over which the rate rises from 0.
        final_lr_factor: final learning rate of `cosine` and `linear` as a fraction of the peak.
        steps: with schedule `steps`, epochs at which the rate is multiplied by `step_factor`.
        step_factor: factor for schedule `steps`.
    """

    lr: float = 5e-4
    tower_lr_factor: float = 0.1
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    schedule: Literal["cosine", "linear", "steps", "constant"] = "cosine"
    warmup: float = 0.05
    final_lr_factor: float = 0.0
    steps: list[float] = field(default_factory=list)
    step_factor: float = 0.1

    def __post_init__(self) -> None:
        """Check the ranges of all values."""
        for name in ("lr", "tower_lr_factor", "weight_decay", "eps", "warmup", "final_lr_factor", "step_factor"):
            if not getattr(self, name) >= 0:
                raise UserError(f"optimizer.{name} is {getattr(self, name)}; it must be 0 or more")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas is {list(self.betas)}; both must be 0 or more and below 1")


def gradient_scaler(trainer: pl.Trainer) -> torch.amp.GradScaler | None:
    """The gradient scaler of float16 training; None in other precisions."""
    return getattr(trainer.precision_plugin, "scaler", None)


def loss_scale(trainer: pl.Trainer | None, device: torch.device) -> torch.Tensor | None:
    """The factor on the loss in float16 training [], on the device; None in other precisions or without a trainer."""
    scaler = None if trainer is None else gradient_scaler(trainer)
    return None if scaler is None else scaler.scale(torch.ones((), device=device))


def scheduled_adamw(
    groups: list[dict[str, Any]], settings: OptimizerSettings, trainer: pl.Trainer, device: torch.device
) -> dict[str, Any]:
    """AdamW and its schedule, updated at each step, in the form that Lightning expects."""
    scaled = gradient_scaler(trainer) is not None
    # A fused step unscales float16 gradients itself, which is too late for clipping.
    fused = device.type in ("cuda", "cpu") and not (scaled and trainer.gradient_clip_val)
    optimizer = torch.optim.AdamW(groups, settings.lr, settings.betas, settings.eps, fused=fused)
    total = _total_steps(trainer, settings)
    epochs = total * trainer.accumulate_grad_batches / max(1, trainer.num_training_batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor(settings, total, epochs))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _total_steps(trainer: pl.Trainer, settings: OptimizerSettings) -> int:
    """The steps of the whole run; 0 for a run without an end under a schedule that needs none."""
    steps = trainer.estimated_stepping_batches
    if 0 <= steps < math.inf:
        return int(steps)
    if settings.schedule != "constant" or 0 < settings.warmup < 1:
        raise UserError(
            f"model.optimizer.schedule {settings.schedule} with warmup {settings.warmup} depends on the length of the "
            "run, which has no end: set --trainer.max_epochs or --trainer.max_steps, or give "
            "--model.optimizer.schedule constant and --model.optimizer.warmup as a number of steps"
        )
    return 0


def clip_gradients(
    module: pl.LightningModule,
    optimizer: torch.optim.Optimizer,
    gradient_clip_val: float | None = None,
    gradient_clip_algorithm: str | None = None,
) -> None:
    """Clip gradients as Lightning does, but also with a fused optimizer in bf16, which Lightning needlessly refuses."""
    plugin = module.trainer.precision_plugin
    if isinstance(plugin, MixedPrecision) and plugin.scaler is None:
        algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
        Precision.clip_gradients(plugin, optimizer, gradient_clip_val or 0.0, algorithm)
    else:
        module.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], is_tower: Callable[[str], bool], settings: OptimizerSettings
) -> list[dict[str, Any]]:
    """Up to four groups: towers and heads, each with and without weight decay. Frozen parameters are skipped."""
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        tower, decays = is_tower(name), parameter.dim() >= 2
        key = ("towers" if tower else "heads") + ("" if decays else "_no_decay")
        lr = settings.lr * (settings.tower_lr_factor if tower else 1)
        decay = settings.weight_decay if decays else 0.0
        group = groups.setdefault(key, {"name": key, "lr": lr, "weight_decay": decay, "params": []})
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def lr_factor(settings: OptimizerSettings, total_steps: int, total_epochs: float) -> Callable[[int], float]:
    """The learning rate as a fraction of its peak, as a function of the step."""
    warmup = settings.warmup * total_steps if settings.warmup < 1 else settings.warmup
    warmup = math.ceil(warmup)

    def decay(step: int) -> float:
        if settings.schedule == "steps":
            epoch = step / max(1, total_steps) * total_epochs
            return settings.step_factor ** sum(epoch >= at for at in settings.steps)
        if settings.schedule == "constant":
            return 1.0
        done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        falling = 1 - done if settings.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        return settings.final_lr_factor + (1 - settings.final_lr_factor) * falling

    return lambda step: (step + 1) / (warmup + 1) if step < warmup else decay(step)
