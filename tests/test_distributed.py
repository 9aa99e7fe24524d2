"""Several processes give the loss, the gradients and the gallery of one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from exact_parts import BATCH, GRID, OFTEN, VARIANTS, assert_equal, expected, gradients, make_batch, make_module
from itr.evaluation.gallery import GalleryBuilder
from itr.state import random_state
from itr.types import Batch, Encoded, Tokens

Processes = tuple[list[tuple[str, str]], list[dict[str, Any]]]


def make_gallery(rank: int, world: int) -> dict[str, torch.Tensor]:
    """Shares of different sizes that overlap by one sample."""
    generator = torch.Generator().manual_seed(2)
    pooled, ids = torch.randn(10, 3, generator=generator), torch.randperm(10, generator=generator)
    builder = GalleryBuilder(with_tokens=True)
    for row in range(rank * 10 // world, min((rank + 1) * 10 // world + 1, 10)):
        here = slice(row, row + 1)
        tokens = pooled[here, None].repeat(1, row + 1, 1)  # the length differs for every batch
        encoded = Encoded(pooled[here], tokens, torch.ones(1, row + 1, dtype=torch.bool))
        text = Tokens(ids[here, None], ids[here, None] >= 0)
        pixels = ids[here, None, None, None].to(torch.uint8)
        builder.add(Batch(pixels, ids[here], text, 7 * ids[here], torch.tensor([0])), encoded, encoded)
    found = builder.build()
    return {"image": found.image.pooled, "tokens": found.text.tokens, "mask": found.text.mask, "id": found.text_id}


def draw_twice(rank: int) -> torch.Tensor:
    """Random numbers that a process draws before and after its random state is restored [2, 7]."""

    def draw() -> torch.Tensor:
        others = [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn()]
        return torch.cat([torch.rand(3), torch.tensor(others)])

    pl.seed_everything(rank, verbose=False)
    random.gauss(0, 1), np.random.randn()  # both cache a second number for the next call
    states = random_state.collect(torch.device("cpu"))
    first = draw()
    random_state.restore(states, torch.device("cpu"))
    return torch.stack([first, draw()])


def work(rank: int, world: int, folder: str, cases: list[tuple[str, str]]) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=world)
    share = BATCH // world
    rows = slice(rank * share, (rank + 1) * share)
    found = [gradients(make_module(m, VARIANTS[v]), make_batch(rows), parallel=True) for m, v in cases]
    others = {"gallery": make_gallery(rank, world), "random": {"drawn": draw_twice(rank)}}
    torch.save({"cases": found, **others}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(
    scope="module",
    params=[
        (2, OFTEN),
        pytest.param((2, GRID), marks=pytest.mark.slow),
        pytest.param((3, GRID), marks=pytest.mark.slow),
    ],
    ids=["2", "2, whole grid", "3, whole grid"],
)
def processes(request, tmp_path_factory) -> Processes:
    """The results of each process, with the models and variants."""
    world, cases = request.param
    folder = tmp_path_factory.mktemp("processes")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["itr.module"])
    mp.start_processes(work, (world, str(folder), cases), nprocs=world, start_method="forkserver")
    return cases, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def test_processes_give_the_loss_and_gradients_of_the_whole_batch(processes):
    cases, everywhere = processes
    for found in everywhere:
        for number, case in enumerate(cases):
            assert_equal(found["cases"][number], expected(case[0]), case)


@pytest.mark.parametrize(
    ("model", "variant"),
    [
        pytest.param(model, variant, marks=() if (model, variant) in OFTEN else pytest.mark.slow)
        for model, variant in GRID
        if variant != "gathered"
    ],
)
def test_one_process_gives_the_loss_and_gradients_of_the_whole_batch(model, variant):
    found = gradients(make_module(model, VARIANTS[variant]), make_batch(slice(0, BATCH)))
    assert_equal(found, expected(model), (model, variant))


def test_processes_build_the_gallery_of_one(processes):
    whole = make_gallery(0, 1)
    for found in processes[1]:
        for key, value in whole.items():
            assert torch.equal(found["gallery"][key], value)


def test_each_process_restores_its_own_random_state(processes):
    drawn = [found["random"]["drawn"] for found in processes[1]]
    assert all(torch.equal(first, again) for first, again in drawn)
    assert not torch.equal(drawn[0], drawn[1])


def test_the_random_state_of_another_number_of_processes_is_ignored(caplog):
    states = random_state.collect(torch.device("cpu"))
    with caplog.at_level("INFO", logger="itr.state.random_state"):
        random_state.restore({"cpu": states["cpu"].repeat(2, 1)}, torch.device("cpu"))
    assert "of 2 processes and this run of 1: random numbers start from scratch" in caplog.text
