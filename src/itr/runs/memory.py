"""What the system refuses or ends while a verb works: memory, open files, shared memory, a killed worker."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from itr.errors import UserError

# Errors of torch, NumPy and the system. Each has its own type, so match the words.
MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|Unable to allocate|Cannot allocate memory", re.IGNORECASE
)
WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? (?P<pid>[\d, ]+)\) (?:is killed by signal: (?P<by>\w+)|exited)")
FILES = re.compile(r"Too many open files|received 0 items of ancdata", re.IGNORECASE)
SHARED = re.compile(r"unable to (open|write|mmap|resize|allocate) .*(shared memory|/torch_|/dev/shm)", re.IGNORECASE)
SHARED_FOLDER = "/dev/shm"
FULL = 2**20  # bytes of shared memory; a batch does not fit into less
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
    """Report what the system refused, and the options that need less of it; nothing is written meanwhile.

    Raises:
        UserError: memory, open files or shared memory ran out, or a data worker was killed.
    """
    try:
        yield
    except (UserError, BrokenPipeError):
        raise
    except (RuntimeError, MemoryError, OSError) as error:
        if (message := _message(error, verb)) is None:
            raise
        raise UserError(message) from error


def _message(error: Exception, verb: str) -> str | None:
    """What is reported about an error; None if it has another cause."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    levers = LEVERS.get(verb, "a smaller --batch_size and fewer --num_workers")
    if FILES.search(str(error)) or getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
        return f"too many open files ({said}): raise the limit by `ulimit -n 4096`, or use fewer data workers"
    if found := WORKER.search(str(error)):
        return _worker_message(found["pid"].strip(), found["by"], levers)
    if SHARED.search(str(error)) or (getattr(error, "errno", None) == errno.ENOSPC and _shared_is_full()):
        return f"{said}: {_shared_memory()}"
    if isinstance(error, MemoryError) or MEMORY.search(str(error)):
        return f"out of memory: {said}\nWhat takes less: {levers}"
    return None


def _worker_message(process: str, signal: str | None, levers: str) -> str:
    if signal == "Bus":
        return f"data worker {process} was ended by SIGBUS, as when shared memory is full: {_shared_memory()}"
    if signal == "Killed":
        return (
            f"data worker {process} was killed by SIGKILL from outside: by a person or a batch system, or by the "
            f"system if its memory was full, which its log shows (dmesg). What takes less memory: {levers}"
        )
    how = f"was ended by a signal ({signal})" if signal else "ended unexpectedly"
    return f"data worker {process} {how}; what it printed is above. With --data.num_workers 0 the error shows itself"


def _shared_is_full() -> bool:
    with suppress(OSError):
        return shutil.disk_usage(SHARED_FOLDER).free < FULL
    return False


def _shared_memory() -> str:
    size = ""
    with suppress(OSError):
        usage = shutil.disk_usage(SHARED_FOLDER)
        size = f" has {usage.free / 2**20:.1f} of {usage.total / 2**20:.1f} MiB free;"
    return (
        f"the data workers pass batches through {SHARED_FOLDER}, which{size or ' is too small;'} make it larger (a "
        "container: --shm-size 8g), use fewer data workers, or --data.num_workers 0"
    )
