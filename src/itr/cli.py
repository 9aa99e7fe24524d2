"""The command `itr`: a verb, then its options. A verb is imported only when it runs."""

from __future__ import annotations

import difflib
import importlib
import io
import logging
import multiprocessing
import os
import select
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import TextIO

from itr.commands.process import set_up_cpu
from itr.errors import UserError, WrongOptionError, bounded
from itr.runs.memory import memory_errors

VERBS = {
    "demo": ("itr.commands.demo", "make a small data set, train on it and test, all in a few minutes"),
    "prepare": ("itr.data.preparing.command", "turn images and captions into shards"),
    "data": ("itr.data.inspecting.command", "check shards, or look at what they contain"),
    "densify": ("itr.passes.densify", "have a vision-language model write dense captions of shards once"),
    "features": ("itr.passes.features", "run a frozen teacher over shards once and keep its features"),
    "fit": ("itr.runs.command", "train a model, or resume a run"),
    "stages": ("itr.commands.stages", "train with several configs, one after another"),
    "validate": ("itr.runs.command", "measure a model on the validation split"),
    "test": ("itr.runs.command", "measure a model on the test split and write metrics.json"),
    "predict": ("itr.runs.command", "embed a split and write embeddings.npz"),
    "evaluate": ("itr.protocols.command", "measure a checkpoint or a named encoder by a published protocol"),
    "embed": ("itr.embedding.command", "embed shards, a folder of images or lines of text by a model"),
    "report": ("itr.report.make", "show a run, or several side by side, on one page that opens without a network"),
    "convert": (
        "itr.interop.convert",
        "turn a checkpoint of the authors, or one with adapters, into a plain one of ours",
    ),
}

STDOUT = 1


def usage() -> str:
    """What `itr --help` prints."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {line}" for verb, (_, line) in VERBS.items())
    return (
        "usage: itr VERB [options]\n\nTrain, measure and use image-text retrieval.\n\n"
        f"{verbs}\n\n`itr VERB --help` lists the options of a verb; `itr --version` prints the version."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit status is 0, 1 for an error that users can correct, or 2 for a wrong command line."""
    try:
        status = _main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        if not _is_closed(STDOUT):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)  # Python flushes stdout when it exits
        print("itr: stopped: nothing reads its output any more", file=sys.stderr)
        return 128 + signal.SIGPIPE


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    verb = arguments[0]
    if verb == "--version":
        print(version("itr"))
        return 0
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        print(f"itr: error: the verb {verb!r} does not exist{hint}\n\n{usage()}", file=sys.stderr)
        return 2
    set_up_cpu()
    _show_our_messages()
    try:
        with memory_errors(verb):
            from itr.commands.order import present_names
            from itr.early import check_early  # takes longer to import than `itr --help` may

            arguments = present_names(arguments)
            check_early(arguments)
            return importlib.import_module(VERBS[verb][0]).main(arguments) or 0
    except UserError as error:
        _print_error(f"itr: error: {bounded(str(error))}")
        return 1
    except WrongOptionError as error:
        print(f"itr: error: {error}\n`itr {verb} --help` lists the options.", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if isinstance(error, BrokenPipeError) or error.strerror is None:
            raise
        names = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        _print_error(f"itr: error: {bounded(error.strerror + ': ' * bool(names) + names)}")
        return 1
    except RuntimeError as error:
        if "home directory" not in str(error):  # pathlib, for ~nobody
            raise
        print(
            "itr: error: a path begins with ~ but has no home folder; write the path in full",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("itr: stopped", file=sys.stderr)
        return 130


def _is_closed(pipe: int) -> bool:
    """Whether the other end of a pipe is closed, as after `itr ... | head`; another pipe may have broken."""
    poll = select.poll()
    poll.register(pipe, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _print_error(text: str) -> None:
    """Print to stderr, on its own line even if a progress bar is shown."""
    # Not in a data worker: it was forked, and a thread of tqdm may have held a lock then.
    if "tqdm" in sys.modules and sys.stderr.isatty() and multiprocessing.parent_process() is None:
        sys.modules["tqdm"].tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr)


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stderr`, which may have been replaced since."""

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """The current stderr."""
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        """Ignore the value."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message."""
        _print_error(self.format(record))


def _show_our_messages() -> None:
    ours = logging.getLogger("itr")
    ours.setLevel(logging.INFO)
    for stream in (sys.stdout, sys.stderr):  # names and captions may contain what the terminal or UTF-8 cannot encode
        if isinstance(stream, io.TextIOWrapper):
            # A log shows each line at once, not after 8 kB.
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    ours.propagate = False
    if not ours.handlers:
        handler = _Stderr()
        handler.setFormatter(logging.Formatter("itr: %(message)s"))
        ours.addHandler(handler)


if __name__ == "__main__":
    sys.exit(main())
