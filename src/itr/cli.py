"""The command `itr`: a verb, then its options. Each verb is imported only when it runs."""

from __future__ import annotations

import difflib
import importlib
import io
import logging
import os
import select
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import TextIO

from itr.errors import UserError
from itr.runs.memory import memory_told

VERBS = {
    "demo": ("itr.commands.demo", "make a small data set, train on it and test, all in a few minutes"),
    "prepare": ("itr.data.preparing.command", "turn images and captions into shards"),
    "data": ("itr.data.inspecting.command", "check shards, or look at what they hold"),
    "densify": ("itr.passes.densify", "have a vision-language model write dense captions of shards once"),
    "features": ("itr.passes.features", "run a frozen teacher over shards once and keep its features"),
    "fit": ("itr.runs.command", "train a model, or go on with one"),
    "stages": ("itr.commands.stages", "train with several configs, one after another"),
    "validate": ("itr.runs.command", "measure a model on the validation split"),
    "test": ("itr.runs.command", "measure a model on the test split and write metrics.json"),
    "predict": ("itr.runs.command", "embed a split and write embeddings.npz"),
    "evaluate": ("itr.protocols.command", "measure a checkpoint or a named encoder by a published protocol"),
    "embed": ("itr.embedding.command", "embed shards, a folder of images or lines of text by a checkpoint"),
    "report": ("itr.report.make", "show a run, or several side by side, on one page that opens without a network"),
    "convert": ("itr.interop.convert", "turn a checkpoint of CUSA's or D2S-VSE's authors into one of ours"),
}

STDOUT = 1


def usage() -> str:
    """What `itr --help` prints."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {line}" for verb, (_, line) in VERBS.items())
    return (
        "usage: itr VERB [options]\n\nTrain, measure and use image-text retrieval.\n\n"
        f"{verbs}\n\n`itr VERB --help` tells a verb's options; `itr --version` the version."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status: 0, 1 for an error the user can put right, 2 for a wrong command line."""
    try:
        status = _main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        if not _is_read_no_more(STDOUT):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)  # Python writes what waits when it ends
        print("itr: stopped: what it prints is read no more", file=sys.stderr)
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
        print(f"itr: error: there is no verb {verb!r}{hint}\n\n{usage()}", file=sys.stderr)
        return 2
    # Idle threads that spin take the cores from the workers that decode and from other programs: with two training
    # programs on two cores a step took ten times as long. It has to be said before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _show_our_messages()
    try:
        with memory_told(verb):
            return importlib.import_module(VERBS[verb][0]).main(arguments) or 0
    except UserError as error:
        print(f"itr: error: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if "home directory" not in str(error):  # what pathlib makes of ~nobody
            raise
        print("itr: error: a path begins with ~, and whose home that is is not known; write it out", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("itr: stopped", file=sys.stderr)
        return 130


def _is_read_no_more(pipe: int) -> bool:
    """Whether the other end of a pipe is closed, as after `itr ... | head`; another pipe may have broken."""
    poll = select.poll()
    poll.register(pipe, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at the time: it may have been put aside or replaced since."""

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """The present stderr."""
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        """Leave it."""


def _show_our_messages() -> None:
    ours = logging.getLogger("itr")
    ours.setLevel(logging.INFO)
    for stream in (sys.stdout, sys.stderr):  # names and captions may hold what the terminal or UTF-8 can't
        if isinstance(stream, io.TextIOWrapper):
            # A log shows a line when it is printed, not when 8 kB have come together.
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    ours.propagate = False
    if not ours.handlers:
        handler = _Stderr()
        handler.setFormatter(logging.Formatter("itr: %(message)s"))
        ours.addHandler(handler)


if __name__ == "__main__":
    sys.exit(main())
