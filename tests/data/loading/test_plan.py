"""Shares of the shards: equal, complete, and the same after a resume."""

from __future__ import annotations

import itertools

import pytest

from itr.data.loading import plan


def read(counts, order, start, stop):
    """The items of `spans` as (shard, number) pairs."""
    return [
        (span.shard, item)
        for span in plan.spans(counts, order, start, stop)
        for item in range(span.skip, span.skip + span.take)
    ]


def test_spans_follow_the_shard_order_and_wrap_around():
    counts, order = [3, 0, 4, 2], [2, 0, 1, 3]
    whole = [(shard, item) for shard in order for item in range(counts[shard])]
    for start, stop in itertools.product(range(12), range(25)):
        expected = [whole[i % 9] for i in range(start, stop)]
        assert read(counts, order, start, stop) == expected


class Counted(list):
    """A list that counts how often its elements are read."""

    asked = 0

    def __getitem__(self, index):
        self.asked += 1
        return super().__getitem__(index)


def test_planning_time_is_linear_in_the_number_of_shards():
    asked = []
    for number in (100, 1000):
        counts = Counted([2] * number)
        assert len(plan.spans(counts, list(range(number)), 1, 2 * number + 1)) == number + 1
        asked.append(counts.asked)
    assert asked[1] < 11 * asked[0]


@pytest.mark.parametrize("total", [1, 2, 7, 50, 101])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [1, 4, 16])
def test_shares_are_equal_in_training_and_complete_in_evaluation(total, world, batch):
    training = [plan.training_share(total, batch, rank, world) for rank in range(world)]
    assert {share.batches for share in training} == {total // (batch * world)}
    used = [i for share in training for i in range(share.start, share.start + share.items)]
    assert used == list(range(total // (batch * world) * batch * world))

    evaluation = [plan.evaluation_share(total, batch, rank, world) for rank in range(world)]
    assert len({share.batches for share in evaluation}) == 1
    seen = set()
    for share in evaluation:
        for b in range(share.batches):
            first, last = share.bounds(b)
            assert 1 <= last - first <= batch
            seen |= {i % total for i in range(first, last)}
    assert seen == set(range(total))


@pytest.mark.parametrize("batches", [1, 2, 7, 12])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_round_robin_loader_gives_the_same_batches_after_a_resume(batches, workers):
    def order(start: int) -> list[int]:
        shares = [plan.worker_share(batches, worker, workers, start) for worker in range(workers)]
        queues = [list(range(share.first, share.last)) for share in shares]
        turns = itertools.zip_longest(*queues)
        return [batch for turn in turns for batch in turn if batch is not None]

    assert sorted(order(0)) == list(range(batches))
    for start in range(batches):
        assert order(start) == order(0)[start:]


def test_order_and_rotation_depend_only_on_seed_and_epoch():
    assert plan.shard_order(20, 1, 2) == plan.shard_order(20, 1, 2)
    assert len({tuple(plan.shard_order(20, seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert len({plan.rotation(10**6, seed, epoch) for seed in range(3) for epoch in range(3)}) == 9
