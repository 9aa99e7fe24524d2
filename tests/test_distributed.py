"""Several processes give the loss and the gradients of one, and the same gallery."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from itr import random_state
from itr.backbones import VSE
from itr.evaluation.gallery import GalleryBuilder
from itr.methods import CUSA, D2S, Method
from itr.module import RetrievalModule
from itr.objectives import InfoNCE, Objective, Sigmoid, Triplet
from itr.types import Batch, Encoded, Tokens

BATCH = 12
OBJECTIVES = {
    "info_nce": lambda: InfoNCE(),
    "triplet_all": lambda: Triplet(hardest_after=1),
    "triplet_hardest": lambda: Triplet(hardest_after=0),
    "sigmoid": lambda: Sigmoid(),
}


class Loss(nn.Module):
    """The training loss as a forward pass, which is what DDP wraps."""

    def __init__(self, module: RetrievalModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> torch.Tensor:
        return torch.stack(list(self.module.loss_terms(batch, 0.0).values())).sum()


METHODS = {
    "cusa": lambda: [CUSA()],
    "d2s": lambda: [D2S(num_prompts=2, depth=1, heads=2)],
    "both": lambda: [CUSA(targets="dot"), D2S(num_prompts=2, depth=1, heads=2)],
}


def make_module(objective: Objective, methods: Sequence[Method] = ()) -> RetrievalModule:
    torch.manual_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    backbone = VSE(
        vision_config={"model_type": "vit", "image_size": 16, "patch_size": 8, **size, **still},
        text_config={"model_type": "bert", "pad_token_id": None, **size, **still},
        dim=8,
        visual_token_drop=0.0,
        word_mask=0.0,
    )
    return RetrievalModule(backbone, objective, methods).double()


def make_batch(rows: slice) -> Batch:
    generator = torch.Generator().manual_seed(1)
    image_id = torch.randint(8, (BATCH,), generator=generator)  # several rows share an image
    lengths = torch.randint(3, 7, (BATCH, 1), generator=generator)
    dense = torch.randint(5, 99, (BATCH, 9), generator=generator)[rows]
    teachers = [torch.randn(BATCH, width, generator=generator)[rows] for width in (4, 3)]
    return Batch(
        image=torch.randint(256, (BATCH, 3, 16, 16), dtype=torch.uint8, generator=generator)[rows],
        image_id=image_id[rows],
        text=Tokens(torch.randint(5, 99, (BATCH, 7), generator=generator)[rows], (torch.arange(7) < lengths)[rows]),
        text_id=torch.arange(BATCH)[rows],
        image_index=torch.arange(BATCH)[: rows.stop - rows.start],
        image_extra={"teacher_image": teachers[0], "dense": Tokens(dense, dense > 0)},
        text_extra={"teacher_text": teachers[1]},
    )


def gradients(name: str, rows: slice, parallel: bool) -> dict[str, torch.Tensor]:
    module = make_module(OBJECTIVES[name]()) if name in OBJECTIVES else make_module(InfoNCE(), METHODS[name]())
    loss = Loss(module)
    model = DistributedDataParallel(loss) if parallel else loss  # kept until after backward, or nothing is averaged
    value = model(make_batch(rows))
    value.backward()
    found = {key: parameter.grad for key, parameter in loss.named_parameters() if parameter.grad is not None}
    return {"loss": value.detach(), **found}


def make_gallery(rank: int, world: int) -> dict[str, torch.Tensor]:
    """Uneven shares that overlap by a sample."""
    generator = torch.Generator().manual_seed(2)
    pooled, ids = torch.randn(10, 3, generator=generator), torch.randperm(10, generator=generator)
    builder = GalleryBuilder(with_tokens=True)
    for row in range(rank * 10 // world, min((rank + 1) * 10 // world + 1, 10)):
        here = slice(row, row + 1)
        tokens = pooled[here, None].repeat(1, row + 1, 1)  # every batch has another length
        encoded = Encoded(pooled[here], tokens, torch.ones(1, row + 1, dtype=torch.bool))
        text = Tokens(ids[here, None], ids[here, None] >= 0)
        builder.add(Batch(pooled[here], ids[here], text, 7 * ids[here], torch.tensor([0])), encoded, encoded)
    found = builder.build()
    return {"image": found.image.pooled, "tokens": found.text.tokens, "mask": found.text.mask, "id": found.text_id}


def draw_twice(rank: int) -> torch.Tensor:
    """What a process draws before and after its random numbers are put back [2, 7]."""

    def draw() -> torch.Tensor:
        others = [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn()]
        return torch.cat([torch.rand(3), torch.tensor(others)])

    pl.seed_everything(rank, verbose=False)
    random.gauss(0, 1), np.random.randn()  # each keeps a second number for the next call
    states = random_state.collect(torch.device("cpu"))
    first = draw()
    random_state.restore(states, torch.device("cpu"))
    return torch.stack([first, draw()])


def work(rank: int, world: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    share = BATCH // world
    rows = slice(rank * share, (rank + 1) * share)
    found = {name: gradients(name, rows, parallel=True) for name in [*OBJECTIVES, *METHODS]}
    others = {"gallery": make_gallery(rank, world), "random": {"drawn": draw_twice(rank)}}
    torch.save({**found, **others}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def processes(request, tmp_path_factory) -> list[dict[str, dict[str, torch.Tensor]]]:
    """What each of several processes found."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(work, (request.param, port, str(folder)), nprocs=request.param)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(request.param)]


@pytest.mark.parametrize("name", [*OBJECTIVES, *METHODS])
def test_processes_give_the_loss_and_gradients_of_the_whole_batch(processes, name):
    expected = gradients(name, slice(0, BATCH), parallel=False)
    assert len(expected) > 20
    for found in processes:
        assert found[name].keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[name][key], value, rtol=1e-9, atol=1e-11, msg=lambda m, k=key: f"{k}: {m}")


def test_processes_build_the_gallery_of_one(processes):
    expected = make_gallery(0, 1)
    for found in processes:
        for key, value in expected.items():
            assert torch.equal(found["gallery"][key], value)


def test_each_process_gets_its_own_random_numbers_back(processes):
    drawn = [found["random"]["drawn"] for found in processes]
    assert all(torch.equal(first, again) for first, again in drawn)
    assert not torch.equal(drawn[0], drawn[1])


def test_random_numbers_of_another_number_of_processes_are_left(caplog):
    states = random_state.collect(torch.device("cpu"))
    with caplog.at_level("INFO", logger="itr.random_state"):
        random_state.restore({"cpu": states["cpu"].repeat(2, 1)}, torch.device("cpu"))
    assert "of 2 processes and this run of 1: random numbers start anew" in caplog.text
