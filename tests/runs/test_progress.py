"""Progress bars are for terminals; messages do not stick to them."""

from __future__ import annotations

import io
import logging
import sys

import pytest
from lightning.pytorch.callbacks import TQDMProgressBar
from tqdm import tqdm

from itr.cli import _print_error
from itr.runs.trainer_options import ProgressBar, progress_bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stderr", "given", "shown"),
    [
        (io.StringIO(), None, 0),
        (io.StringIO(), True, 1),  # asked for
        (Terminal(), None, 1),
        (Terminal(), False, 0),
    ],
)
def test_without_a_terminal_there_is_no_bar(monkeypatch, stderr, given, shown):
    monkeypatch.setattr(sys, "stderr", stderr)
    settings = {"callbacks": None, "enable_progress_bar": given}
    bars = progress_bars(settings)
    assert [type(bar) for bar in bars] == [ProgressBar] * shown
    assert settings["enable_progress_bar"] == bool(shown)  # or Lightning would add its own
    assert progress_bars({"callbacks": [TQDMProgressBar()], "enable_progress_bar": given}) == []


def test_messages_do_not_stick_to_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with tqdm(total=9, file=terminal, mininterval=0):
        _print_error("itr: error: one")
        logging.getLogger("itr").warning("two")
    lines = terminal.getvalue().replace("\r", "\n").splitlines()
    assert "itr: error: one" in lines
    assert "itr: two" in lines
