"""Processes that divide the tiles of a gallery among them compute exactly the ranks of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from itr.evaluation.cosine import Cosine
from itr.evaluation.counting import AtLeastAsHigh, share
from itr.evaluation.ranks import Matches, rank

CASES = ["fast", "ties", "nan", "function", "single"]


def ranks_of(case: str) -> list[Tensor]:
    """The ranks of a small gallery whose captions are in random order."""
    generator = torch.Generator().manual_seed(0)
    num_images = 1 if case == "single" else 50
    image, text = torch.randn(num_images, 9, generator=generator), torch.randn(130, 9, generator=generator)
    own = torch.randint(num_images, (130,), generator=generator)
    if case == "ties":
        image, text = image.sign(), text.sign()
    if case in ("nan", "function"):
        scores = image @ text.T
        scores[::7, ::3] = torch.nan if case == "nan" else 0
        found = rank(lambda rows, columns: scores[rows, columns], Matches.own(own, num_images), tile=16)
    else:
        matches = Matches(torch.tensor([0]), torch.tensor([3]), 1, 130) if case == "single" else None
        found = rank(Cosine(image, text), matches or Matches.own(own, num_images), tile=16)
    return [found.image_to_text, found.text_to_image]


def work(process: int, processes: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=process, world_size=processes)
    torch.save({case: ranks_of(case) for case in CASES}, f"{folder}/{process}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_several_processes_compute_the_ranks_of_one(tmp_path: Path, processes: int) -> None:
    mp.spawn(work, (processes, str(tmp_path)), nprocs=processes)
    for process in range(processes):
        found = torch.load(tmp_path / f"{process}.pt")
        for case in CASES:
            for ours, alone in zip(found[case], ranks_of(case), strict=True):
                assert torch.equal(ours, alone), (case, process)


def test_each_tile_is_counted_by_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = [(slice(i, i + 1), slice(0, 1)) for i in range(7)]
    monkeypatch.setattr("itr.evaluation.counting.world_size", lambda: 3)
    shares = []
    for process in range(3):
        monkeypatch.setattr("itr.evaluation.counting.process_number", lambda process=process: process)
        shares.append(list(share(tiles)))
    assert [len(part) for part in shares] == [3, 2, 2]
    assert sorted(tile[0].start for part in shares for tile in part) == list(range(7))


def test_counts_add_up_over_updates_and_start_again_after_a_reset() -> None:
    scores = torch.arange(12.0).reshape(3, 4)
    counts = AtLeastAsHigh((torch.tensor([2.0, 9.0, 9.0]), torch.tensor([4.0, 4.0, 4.0, 4.0])))
    score = lambda rows, columns: scores[rows, columns]  # noqa: E731
    for columns in (slice(0, 3), slice(3, 4)):
        counts.update(score, [(slice(0, 3), columns)])
    assert [part.tolist() for part in counts.compute()] == [[2, 0, 3], [2, 2, 2, 2]]
    counts.reset()
    counts.update(score, [(slice(0, 1), slice(0, 4))])
    assert [part.tolist() for part in counts.compute()] == [[2, 0, 0], [0, 0, 0, 0]]
