"""Common parts of `itr features` and `itr densify`: sharing chunks, the loop over them, and the final message."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from tqdm import tqdm

from itr.commands.inputs import check_at_least
from itr.data.features.reader import Chunk, ChunkReader
from itr.data.shards.patterns import split_list
from itr.errors import UserError
from itr.files.passes import Pass

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """Which of several processes this one is.

    Args:
        process: its number, from 0.
        of: how many there are.

    Raises:
        UserError: the number is not between 0 and `of` - 1.
    """

    process: int
    of: int

    def __post_init__(self) -> None:
        if not 0 <= self.process < self.of:
            raise UserError(
                f"process {self.process} of {self.of}: give --process 0 to {self.of - 1} with --of {self.of}"
            )

    @classmethod
    def given(cls, process: int | None, of: int | None) -> Share:
        """From the options `--process` and `--of`; without them, from the variables that torchrun sets."""
        number = int(os.environ.get("RANK", 0)) if process is None else process
        return cls(number, int(os.environ.get("WORLD_SIZE", 1)) if of is None else of)

    def chunks(self, num_chunks: int) -> range:
        """The chunks of this process: equal ranges, each chunk in exactly one."""
        return range(self.process * num_chunks // self.of, (self.process + 1) * num_chunks // self.of)

    def check(self, batch_size: int, overwrite: bool) -> None:
        """Check the options of a pass that these processes share; UserError if they do not fit."""
        check_at_least(1, batch_size=batch_size)
        if overwrite and self.of > 1:
            raise UserError("--overwrite true works with one process only; with several, delete the old files first")


def split_names(splits: str, data: str = "") -> list[str]:
    """The names in `--splits`, which may be folders or patterns below the shards `data`."""
    return split_list(splits, data)


def store_chunks(
    job: Pass,
    reader: ChunkReader,
    results: Iterable[tuple[Chunk, T]],
    write: Callable[[Chunk, T], None],
    what: str,
) -> bool:
    """Write the result of each chunk as it arrives; returns whether all processes are done now.

    Args:
        job: the pass that the results belong to.
        reader: reads the chunks.
        results: a result for each chunk of the reader.
        write: writes one result with `job`.
        what: label of the progress bar.
    """
    with job, tqdm(total=sum(map(reader.num_items, reader.todo)), desc=what, unit="", disable=None) as bar:
        for chunk, result in results:
            write(chunk, result)
            bar.update(reader.num_items(chunk.number))
    return job.finish()


def print_outcome(complete: bool, share: Share, data: str, option: str) -> None:
    """Print how to train with the results, or that other processes are not done.

    Args:
        complete: whether the results are complete.
        share: which process this is.
        data: the shards.
        option: the option of `itr fit` that uses the results.
    """
    if complete:
        print(f"train with them: itr fit ... --data.root {data} {option}")
    else:
        print(f"process {share.process} of {share.of} is done; the last process to finish completes the files")
