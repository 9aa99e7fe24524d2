"""Out of memory: one message with the options that need less."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from itr.errors import UserError

# Errors of torch, NumPy, the system, and a loader whose worker was killed. Each has its own type, so match the words.
SIGNS = re.compile(
    r"out of memory|can't allocate memory|not enough memory|Unable to allocate|Cannot allocate memory"
    r"|DataLoader worker .* killed by signal: (Killed|Bus error)"
)
TRAINING = (
    "--trainer.precision bf16-mixed; --model.backbone.gradient_checkpointing true; --model.large_batch.gradient_cache, "
    "which keeps the batch; a smaller --data.batch_size; a smaller --data.eval_batch_size if it is validation that "
    "fails; for the machine's own memory fewer --data.num_workers and a smaller --data.shuffle_buffer. "
    "The checkpoints are unchanged: --ckpt_path last resumes from there with other --trainer, --data and "
    "--model.large_batch options, while other --model options need a new run"
)
LEVERS = {
    "fit": TRAINING,
    **dict.fromkeys(
        ("validate", "test", "predict"), "a smaller --data.eval_batch_size; --trainer.precision bf16-mixed"
    ),
}


@contextmanager
def memory_errors(verb: str) -> Iterator[None]:
    """Report the options that need less memory if a verb runs out of it; nothing is written meanwhile.

    Raises:
        UserError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        said = str(error).strip() or type(error).__name__
        if not isinstance(error, MemoryError) and not SIGNS.search(said):
            raise
        levers = LEVERS.get(verb, "a smaller --batch_size and fewer --num_workers")
        raise UserError(f"out of memory: {said.splitlines()[0]}\nWhat takes less: {levers}") from error
