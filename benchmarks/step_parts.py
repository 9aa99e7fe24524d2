"""Models and training loops for `training_step.py`."""

from __future__ import annotations

import copy
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itr.backbones import CLIP, VSE, Backbone
from itr.backbones.towers.clip_features import text_features
from itr.commands.quieten import quieten
from itr.module import RetrievalModule
from itr.objectives import InfoNCE
from itr.runs.callbacks import History
from itr.runs.loggers import Csv, TensorBoard
from itr.runs.waiting import DataWait
from itr.runs.watch import Watch
from itr.types import Batch, Tokens
from measuring import Rounds, device, synchronise

NARROW: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 96, "layers": 3, "width": 128, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 3},
}
TINY: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
PRECISION = "bf16-mixed" if device() == "cuda" else "32-true"


def backbone(name: str) -> Backbone:
    """Return a backbone with random weights: `narrow`, `tiny`, `small VSE`, or a model of open_clip."""
    torch.manual_seed(0)
    if name == "small VSE":
        return VSE()
    if name in ("narrow", "tiny"):
        return CLIP(config=copy.deepcopy(NARROW if name == "narrow" else TINY))
    return CLIP(model=name)


def make_batch(model: Backbone, pairs: int, length: int = 24) -> Batch:
    """Return a batch of random pairs with captions of up to `length` tokens."""
    side, lengths = model.image_spec.size, torch.linspace(8, length, pairs).round().long()
    mask = torch.arange(length) < lengths[:, None]
    ids = torch.randint(1, 40000, (pairs, length)) * mask
    ids.scatter_(1, lengths[:, None] - 1, 49407)  # CLIP's end token
    row = torch.arange(pairs)
    pixels = torch.randint(0, 256, (pairs, 3, side, side), dtype=torch.uint8)
    return Batch(pixels, row, Tokens(ids, mask), row, row, keys=[f"000/{i:06}" for i in range(pairs)])


def autocast() -> AbstractContextManager[Any]:
    """Return bf16 autocast on a GPU, as the Trainer uses it."""
    return torch.autocast("cuda", torch.bfloat16, enabled=device() == "cuda")


def towers(model: Backbone, pixels: Tensor, text: Tokens) -> tuple[Tensor, Tensor]:
    """Return pooled embeddings from the towers alone, for images that are already normalised."""
    if isinstance(model, VSE):
        return model.encode_pixels(pixels).pooled, model.encode_text(text).pooled
    assert isinstance(model, CLIP)
    image = model.model.visual(pixels)  # type: ignore[operator,union-attr]
    return image[0] if isinstance(image, tuple) else image, text_features(model.text_tower, text).pooled


def bare_step(model: Backbone, batch: Batch) -> Callable[[], None]:
    """Return a hand-written step: towers, cross entropy in both directions, backward, fused AdamW."""
    place = torch.device(device())
    model = model.to(place).train()
    batch = batch.to(place)
    pixels, labels = model.normalise(batch.image), torch.arange(len(batch), device=place)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, 1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            image, text = towers(model, pixels, batch.text)
        logits = F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T / 0.05
        (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)).backward()
        optimizer.step()

    return step


def module_step(module: RetrievalModule, batch: Batch) -> Callable[[], None]:
    """Return our step in a bare loop: no Lightning, no callbacks, no logging."""
    place = torch.device(device())
    module = module.to(place).train()
    batch = batch.to(place)
    optimizer = torch.optim.AdamW([w for w in module.parameters() if w.requires_grad], 1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            terms = module.loss_terms(batch, 0.0)
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        module.objective.clamp()

    return step


class TimingLoader:
    """Loader that repeats one batch, and times alternating blocks of training steps and of the alternatives.

    Args:
        batch: the batch to repeat, in host memory.
        others: a function for one step of each alternative.
        rounds: number of timed rounds.
        steps: steps per block.
    """

    waited = 0.0  # read by `DataWait`

    def __init__(self, batch: Batch, others: dict[str, Callable[[], object]], rounds: int, steps: int) -> None:
        self.batch, self.others, self.rounds, self.steps = batch, others, rounds, steps
        self.seconds: dict[str, list[float]] = {name: [] for name in ("ours", *others)}

    def __len__(self) -> int:
        return (self.rounds + 1) * self.steps + 1

    def __iter__(self) -> Iterator[Batch]:
        for number in range(self.rounds + 1):  # the first round warms up
            synchronise()
            began = time.perf_counter()
            yield from itertools.repeat(self.batch, self.steps)
            self._record("ours", began, number)
            for name, step in self.others.items():
                began = time.perf_counter()
                for _ in range(self.steps):
                    step()
                self._record(name, began, number)
        yield self.batch  # the loop does not return here after its last step

    def _record(self, name: str, began: float, number: int) -> None:
        synchronise()
        if number:
            self.seconds[name].append((time.perf_counter() - began) / self.steps)


class Repeated(pl.LightningDataModule):
    """Minimal data module around a `TimingLoader`, with what the callbacks need."""

    skipped = bad_shards = num_workers = 0

    def __init__(self, turns: TimingLoader) -> None:
        super().__init__()
        self.turns = turns

    def train_dataloader(self) -> TimingLoader:
        """Return the loader."""
        return self.turns


def time_in_turns(
    module: RetrievalModule, batch: Batch, others: dict[str, Callable[[], object]], rounds: int, steps: int
) -> Rounds:
    """Time a step of `Trainer.fit`, set up as in `itr fit`, and the alternatives, in turn within one run."""
    quieten()
    batch = batch.pin_memory() if device() == "cuda" else batch  # as the data module's loader does
    turns = TimingLoader(batch, others, rounds, steps)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="gpu" if device() == "cuda" else "cpu", devices=1, precision=PRECISION, max_epochs=1,
            default_root_dir=folder, logger=[Csv(folder), TensorBoard(folder)], enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, callbacks=[Watch(), History(), DataWait()],
        )  # fmt: skip
        trainer.fit(module, datamodule=Repeated(turns))
    return Rounds(turns.seconds)


def training(name: str) -> RetrievalModule:
    """Return a model to train with InfoNCE."""
    return RetrievalModule(backbone(name), InfoNCE())


def num_operations(step: Callable[[], None]) -> int:
    """Count the floating-point operations of matrix products and convolutions in one call."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def matrix_rate(side: int) -> Callable[[], object]:
    """Return a product of two square matrices in the precision of the step, with 2 side^3 operations."""
    kind = torch.bfloat16 if device() == "cuda" else torch.float32
    a, b = (torch.randn(side, side, device=device(), dtype=kind) for _ in range(2))
    return lambda: a @ b


def pooling(model: nn.Module, features: Tensor, mask: Tensor) -> Callable[[], None]:
    """Return the forward and backward pass of a pooling alone."""
    features = features.to(device()).requires_grad_()
    mask = mask.to(device())
    return lambda: model(features, mask).sum().backward()
