"""A training step never waits for the device, so the host always runs ahead of it."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from itr.backbones import CLIP, VSE
from itr.commands.quieten import quieten
from itr.methods import CUSA, D2S
from itr.module import RetrievalModule
from itr.objectives import InfoNCE, Objective, Sigmoid, Triplet
from itr.runs.callbacks import History
from itr.runs.loggers import Csv
from itr.runs.trainer_options import ProgressBar
from itr.runs.watch import Watch
from itr.training.large_batch import LargeBatch
from itr.types import Batch, Tokens
from valueless import DEVICE, Steps, Strategy, Waits

SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VISION = {"model_type": "vit", "image_size": 32, "patch_size": 16, **SIZE}
TEXT = {"model_type": "bert", "pad_token_id": None, **SIZE}
OPEN_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def vse() -> VSE:
    return VSE(vision_config=VISION, text_config=TEXT, dim=16, text_mlp=True, text_norm=True)


def clip() -> CLIP:
    return CLIP(config=OPEN_CLIP)


def make_batch(pairs: int = 6) -> Batch:
    def words(length: int) -> Tokens:
        return Tokens(torch.randint(1, 400, (pairs, length)), torch.arange(length) < torch.randint(2, 8, (pairs, 1)))

    row = torch.arange(pairs)
    pixels = torch.randint(0, 256, (pairs, 3, 32, 32), dtype=torch.uint8)
    image_extra = {"teacher_image": torch.randn(pairs, 4), "dense": words(9)}
    return Batch(pixels, row, words(7), row, row, image_extra, {"teacher_text": torch.randn(pairs, 4)}, ["a"] * pairs)


class Batches(pl.LightningDataModule):
    skipped = bad_shards = 0

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader([make_batch()] * 3, batch_size=None)  # type: ignore[arg-type]


def waits_of(module: RetrievalModule, folder: Any) -> dict[str, int]:
    """The operations that would wait for a GPU, in the steps of a run that are not logged."""
    quieten()
    waits = Waits()
    trainer = pl.Trainer(
        strategy=Strategy(), max_steps=3, default_root_dir=folder, logger=Csv(folder), enable_checkpointing=False,
        enable_model_summary=False, callbacks=[Watch(), History(), ProgressBar(), Steps(waits)], gradient_clip_val=1.0,
    )  # fmt: skip
    with waits:
        trainer.fit(module, datamodule=Batches())
    assert module.device == DEVICE
    assert trainer.global_step == 3
    return dict(waits.found)


OBJECTIVES = [InfoNCE, Triplet, Sigmoid]
ALL = [(clip, Sigmoid, 3)]  # with gradient caching
REST = [(b, o, c) for b in (vse, clip) for o in OBJECTIVES for c in (0, 3) if (b, o, c) not in ALL]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*across ranks is zero")  # Lightning's check of the loader's length
@pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`")
@pytest.mark.parametrize(
    ("backbone", "objective", "cache"), [*ALL, *(pytest.param(*c, marks=pytest.mark.slow) for c in REST)]
)
def test_a_training_step_does_not_synchronize_with_the_device(backbone, objective, cache, tmp_path):
    module = RetrievalModule(
        backbone(), objective(), [CUSA(), D2S(num_prompts=2, depth=1, heads=2)], large_batch=LargeBatch(0, 0, cache)
    )
    assert waits_of(module, tmp_path) == {}


class Curious(Objective):
    """An objective that reads the value of its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, scores: Any, progress: float) -> Tensor:
        loss = scores.image_to_text.sum() * self.scale
        return loss if loss > 0 else -loss


@pytest.mark.filterwarnings("ignore:.*across ranks is zero")
@pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`")
def test_a_synchronizing_step_is_found_with_its_line(tmp_path):
    (what,) = waits_of(RetrievalModule(clip(), Curious()), tmp_path).items()
    assert "_local_scalar_dense" in what[0]
    assert "test_waits.py" in what[0]
    assert what[1] == 2  # in all steps but the first


WAITS = {
    "item": lambda x: x.sum().item(),
    "truth": lambda x: bool(x.sum()),
    "list": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "mask": lambda x: x[x > 0],
    "nonzero": lambda x: x.nonzero(),
    "equal": lambda x: torch.equal(x, x),
    "unique": lambda x: x.unique(),
    "new": lambda x: torch.tensor([1.0], device=x.device),
    "index": lambda x: x[torch.tensor([0, 2])],
}


@pytest.mark.parametrize("name", WAITS)
def test_synchronizing_operations_are_found(name):
    with Waits() as waits:
        waits.writing = True
        WAITS[name](torch.ones(3, device=DEVICE))
    assert sum(waits.found.values()) == 1


MIXED = {
    "product": lambda x, y: x @ y,
    "linear": lambda x, y: torch.nn.functional.linear(x, y),
    "embedding": lambda x, y: torch.nn.functional.embedding(y.long(), x),
    "gather": lambda x, y: x.gather(0, y.long()),
    "sum": lambda x, y: x + y,
}


@pytest.mark.parametrize("name", MIXED)
def test_host_and_device_tensors_do_not_mix(name):
    with Waits(), pytest.raises((AssertionError, RuntimeError), match="device"):
        MIXED[name](torch.ones(3, 3, device=DEVICE), torch.ones(3, 3))


def test_asynchronous_operations_are_not_reported():
    with Waits() as waits:
        waits.writing = True
        rows = torch.ones(3, device=DEVICE)
        torch.empty(3).copy_(rows, non_blocking=True)
        make_batch().to(DEVICE)
        torch.ones(3).sum().item()
        rows.masked_fill(rows > 0, 0.0).sum()
        rows * torch.tensor(2.0)
    assert not waits.found
