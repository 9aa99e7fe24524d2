"""Make shards in several processes, each of which makes complete shards, with one progress bar."""

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

from itr.data.preparing.shard_maker import MadeShard, ShardMaker, ShardPlan
from itr.data.shards.staging import reporting_disk_errors
from itr.errors import UserError

STOP_FLAG = -1
_worker: tuple[ShardMaker, Any] | None = None  # in a worker: its shard maker, and the shared counts


class StoppedError(Exception):
    """The whole job was stopped, because another shard failed."""


def make_shards(maker: ShardMaker, plans: list[ShardPlan], num_workers: int, bar: tqdm[Any]) -> list[MadeShard]:
    """Make the shards of all plans, in this process or in workers, and return them in the order of the plans.

    Raises:
        UserError: writing failed, a worker was killed or the user interrupted; finished shards are kept.
    """
    try:
        with reporting_disk_errors(maker.folder.parent):
            if min(num_workers, len(plans)) <= 1:
                return [_make_in_process(maker, plan, bar) for plan in plans]
            return _make_in_workers(maker, plans, num_workers, bar)
    except KeyboardInterrupt:
        raise UserError("interrupted; finished shards are kept: run the same command again to continue") from None
    except BrokenProcessPool:
        raise UserError(
            "a worker was killed, possibly because memory ran out; run the same command again with fewer "
            "--num_workers to continue"
        ) from None


def _make_in_process(maker: ShardMaker, plan: ShardPlan, bar: tqdm[Any]) -> MadeShard:
    before = int(bar.n)
    return maker.make(plan, lambda count: _advance(bar, before + count))


def _advance(bar: tqdm[Any], to: int) -> None:
    bar.update(to - bar.n)


def _make_in_workers(maker: ShardMaker, plans: list[ShardPlan], num_workers: int, bar: tqdm[Any]) -> list[MadeShard]:
    # Spawn, don't fork: workers must not inherit this process's threads and locks, nor its lock file.
    context = multiprocessing.get_context("spawn")
    # One count per shard and a stop flag. Each has one writer, so no lock is needed that a dying worker could hold.
    counts = context.RawArray("q", len(plans) + 1)
    processes = min(num_workers, len(plans))
    with ProcessPoolExecutor(processes, context, _start_worker, (maker, counts)) as pool:
        try:
            with _workers_ignore_interrupts():
                futures = [pool.submit(_make, slot, plan) for slot, plan in enumerate(plans)]
            _show_progress(futures, counts, bar)
            return [future.result() for future in futures]
        finally:
            counts[len(plans)] = STOP_FLAG  # running workers stop at the next image
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _workers_ignore_interrupts() -> Iterator[None]:
    """Processes that start in this context ignore Ctrl-C; the main process handles it and stops them."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set signal handlers, and only it is interrupted
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _show_progress(futures: list[Future[MadeShard]], counts: Any, bar: tqdm[Any]) -> None:
    """Update the progress bar until all shards are made; raise the first error."""
    before = int(bar.n)
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
        _advance(bar, before + sum(counts[: len(futures)]))
        for future in done:
            future.result()


def _start_worker(maker: ShardMaker, counts: Any) -> None:
    global _worker
    _worker = maker, counts
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _make(slot: int, plan: ShardPlan) -> MadeShard:
    assert _worker is not None
    maker, counts = _worker

    def report(count: int) -> None:
        counts[slot] = count
        if counts[len(counts) - 1] == STOP_FLAG:
            raise StoppedError

    return maker.make(plan, report)
