"""Model measurements for `cost_curves.py`: each function returns the call that a point times."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from curves import forked, start_method
from itr.backbones import CLIP
from itr.evaluation.cosine import Cosine
from itr.evaluation.ranks import Matches, rank
from itr.module import RetrievalModule
from itr.objectives import InfoNCE
from itr.types import Batch, Encoded, Tokens, score_rows
from measuring import device, seconds

SMALL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 128, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 64, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4},
}
Call = Callable[[], object]


def model(where: str) -> RetrievalModule:
    """Return a CLIP with random weights: ViT-B/32 on a GPU, a small one elsewhere."""
    torch.manual_seed(0)
    backbone = CLIP("ViT-B-32") if where == "cuda" else CLIP(config=SMALL)
    return RetrievalModule(backbone, InfoNCE()).to(where).train()


def batch(module: RetrievalModule, size: int, words: int, where: str) -> Batch:
    """Return random images, and captions of `words` tokens that end with the end token."""
    side = module.backbone.image_spec.size
    ids = torch.randint(1, 49000, (size, words))
    ids[:, -1] = 49407
    text = Tokens(ids.to(where), torch.ones(size, words, dtype=torch.bool, device=where))
    image = torch.randint(256, (size, 3, side, side), dtype=torch.uint8, device=where)
    rows = torch.arange(size, device=where)
    return Batch(image, rows, text, rows, rows)


def autocast(where: str) -> Any:
    """Return bf16 autocast on a GPU, and no autocast elsewhere."""
    return torch.autocast(where, torch.bfloat16, enabled=where == "cuda")


def step(size: int, words: int) -> Call:
    """Return a training step: forward, loss, backward, AdamW."""
    where = device()
    module = model(where)
    pairs, optimizer = batch(module, size, words, where), torch.optim.AdamW(module.parameters(), fused=True)

    def call() -> None:
        with autocast(where):
            terms = module.loss_terms(pairs, 0.0)
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


def step_operations(words: int) -> float:
    """Count the floating-point operations that one additional pair adds to a step."""
    counts = []
    for size in (2, 4):
        with FlopCounterMode(display=False) as counter:
            step(size, words)()
        counts.append(counter.get_total_flops())
    return (counts[1] - counts[0]) / 2


def text_tower(size: int, words: int) -> Call:
    """Return a forward and backward pass of the text tower on captions of this many tokens."""
    where = device()
    module = model(where)
    text = batch(module, size, words, where).text

    def call() -> None:
        with autocast(where):
            pooled = module.backbone.encode_text(text).pooled
        pooled.sum().backward()

    return call


def text_operations(words: int) -> float:
    """Count the operations per caption in `text_tower`."""
    with FlopCounterMode(display=False) as counter:
        text_tower(2, words)()
    return counter.get_total_flops() / 2


def unit_rows(number: int, width: int) -> Tensor:
    """Return random embeddings [number, width]."""
    return nn.functional.normalize(torch.randn(number, width, device=device()), dim=-1)


def loss(size: int, width: int) -> Call:
    """Return a forward and backward pass of InfoNCE, from given embeddings on."""
    module, rows = model(device()), torch.arange(size, device=device())
    image, text = (_encoded(unit_rows(size, width).requires_grad_()) for _ in range(2))

    def call() -> None:
        scores = score_rows(module.backbone.similarity, image, text, rows, slice(0, size))
        module.objective(scores, 0.0).backward()

    return call


def _encoded(rows: Tensor) -> Encoded:
    return Encoded(rows, rows.new_empty(len(rows), 0, rows.shape[1]), rows.new_empty(len(rows), 0, dtype=torch.bool))


def ranks(images: int, width: int) -> Call:
    """Return the exact ranking of this many images with five captions each, in both directions."""
    image, text = unit_rows(images, width), unit_rows(5 * images, width)
    own = torch.arange(5 * images, device=device()) // 5
    return lambda: rank(Cosine(image, text), Matches.own(own, images))


def product(side: int, dtype: torch.dtype) -> Call:
    """Return a bare matrix product of `2 · side³` operations."""
    one, two = (torch.randn(side, side, device=device(), dtype=dtype) for _ in range(2))
    return lambda: one @ two


def together(processes: int, size: int, words: int, rounds: int) -> tuple[float, float]:
    """Return the seconds of a step of CPU processes in parallel: without communication, and with DDP over gloo."""
    barrier = start_method().Barrier(processes)
    with tempfile.TemporaryDirectory() as folder:
        group = (processes, Path(folder) / "store", barrier)
        found = forked([partial(_member, number, group, size, words, rounds) for number in range(processes)])
    return max(alone for alone, _ in found), max(joined for _, joined in found)


def _member(number: int, group: tuple[int, Path, Any], size: int, words: int, rounds: int) -> tuple[float, float]:
    processes, store, barrier = group
    module = model("cpu")
    pairs, optimizer = batch(module, size, words, "cpu"), torch.optim.AdamW(module.parameters(), fused=True)

    def timed(training: nn.Module) -> float:
        def call() -> None:
            training(pairs).backward()
            optimizer.step()
            optimizer.zero_grad()

        call()
        barrier.wait()
        return statistics.median(seconds(call) for _ in range(rounds))

    alone = timed(_Loss(module))
    dist.init_process_group("gloo", f"file://{store}", rank=number, world_size=processes)
    try:
        return alone, timed(nn.parallel.DistributedDataParallel(_Loss(module)) if processes > 1 else _Loss(module))
    finally:
        dist.destroy_process_group()


class _Loss(nn.Module):
    """A module whose forward pass is the loss, as DDP requires."""

    def __init__(self, module: RetrievalModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, pairs: Batch) -> Tensor:
        """Return the whole loss []."""
        return torch.stack(list(self.module.loss_terms(pairs, 0.0).values())).sum()
