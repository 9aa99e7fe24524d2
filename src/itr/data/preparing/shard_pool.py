"""Shards made by several processes, each whole shards on its own, under one progress bar."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from itr.data.preparing.shard_maker import Made, ShardMaker, ShardPlan
from itr.data.shards.staging import writing
from itr.errors import UserError

STOPPED = -1
_worker: tuple[ShardMaker, Any] | None = None  # in a worker: what it makes shards with, and the board of counts


class StoppedError(Exception):
    """Another shard failed in a way that concerns all."""


def make_shards(maker: ShardMaker, plans: list[ShardPlan], num_workers: int, bar: tqdm[Any]) -> list[Made]:
    """Make the shards of all plans, in this process or in others, and return them in the order of the plans.

    Raises:
        UserError: if the disk refuses, a process is killed or the user stops it; finished shards are kept.
    """
    try:
        with writing(maker.folder.parent):
            if min(num_workers, len(plans)) <= 1:
                return [_make_here(maker, plan, bar) for plan in plans]
            return _make_elsewhere(maker, plans, num_workers, bar)
    except KeyboardInterrupt:
        raise UserError("stopped; finished shards are kept, and the same command goes on from there") from None
    except BrokenProcessPool:
        raise UserError(
            "a worker was killed, perhaps for want of memory; give the same command with fewer --num_workers, "
            "it goes on from there"
        ) from None


def _make_here(maker: ShardMaker, plan: ShardPlan, bar: tqdm[Any]) -> Made:
    before = int(bar.n)
    return maker.make(plan, lambda count: _advance(bar, before + count))


def _advance(bar: tqdm[Any], to: int) -> None:
    bar.update(to - bar.n)


def _make_elsewhere(maker: ShardMaker, plans: list[ShardPlan], num_workers: int, bar: tqdm[Any]) -> list[Made]:
    # Spawned, not forked: threads and locks of this process stay here, and so does the lock file.
    context = multiprocessing.get_context("spawn")
    # A slot for each shard and one to stop all: each has one writer, so a worker that dies leaves no lock behind.
    board = context.RawArray("q", len(plans) + 1)
    count = min(num_workers, len(plans))
    with ProcessPoolExecutor(count, context, _begin, (maker, board)) as pool:
        try:
            with _workers_ignore_interrupts():
                futures = [pool.submit(_make, slot, plan) for slot, plan in enumerate(plans)]
            _follow(futures, board, bar)
            return [future.result() for future in futures]
        finally:
            board[len(plans)] = STOPPED  # those that still work stop at the next image
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _workers_ignore_interrupts() -> Iterator[None]:
    """Processes that start in this context leave Ctrl-C to the main one, which then stops them."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may change signals, and only it is interrupted
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _follow(futures: list[Future[Made]], board: Any, bar: tqdm[Any]) -> None:
    """Show progress until all is made, or raise the first error."""
    before = int(bar.n)
    left = set(futures)
    while left:
        done, left = wait(left, timeout=0.2, return_when=FIRST_COMPLETED)
        _advance(bar, before + sum(board[: len(futures)]))
        for future in done:
            future.result()


def _begin(maker: ShardMaker, board: Any) -> None:
    global _worker
    _worker = maker, board
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _make(slot: int, plan: ShardPlan) -> Made:
    assert _worker is not None
    maker, board = _worker

    def tell(count: int) -> None:
        board[slot] = count
        if board[len(board) - 1] == STOPPED:
            raise StoppedError

    return maker.make(plan, tell)
