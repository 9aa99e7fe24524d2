"""Reading untrusted input ends in a clean result or in one of our errors; the properties are checked for some minutes.

The slow test uses the same examples each time, so that its result depends only on the code. `ITR_FUZZ_SEED` selects
other examples, `ITR_FUZZ_EXAMPLES` and `ITR_FUZZ_SECONDS` allow more. `tests/fuzz/campaign.py` runs the same targets
for hours with new examples, and counts the results.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import time

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

import judging
from all_targets import TARGETS
from judging import Bug, Target, home

SEED = int(os.environ.get("ITR_FUZZ_SEED", 0))
EXAMPLES = int(os.environ.get("ITR_FUZZ_EXAMPLES", 400))
SECONDS = float(os.environ.get("ITR_FUZZ_SECONDS", 4))


@pytest.fixture(autouse=True)
def no_constants_of_the_source(monkeypatch):
    """Keep hypothesis from drawing constants of our modules, which would depend on the modules that are loaded."""
    monkeypatch.setattr(providers, "_get_local_constants", Constants)


class OverError(BaseException):
    """The time is up. Not an `Exception`, which hypothesis would treat as a failure."""


def hold(target: Target, seconds: float) -> None:
    """Judge a number of examples, or as many as the time allows; shrink and print the first bug."""
    set_hypothesis_home_dir(home())
    until: float | None = time.monotonic() + seconds

    @seed(SEED)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,  # judging.SECONDS and WAITING
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(target.examples())
    def property_(example: object) -> None:
        nonlocal until
        if until is not None and time.monotonic() > until:
            raise OverError
        try:
            target.judge(example)
        except Bug as bug:
            until = None  # no time limit for shrinking
            raise AssertionError(str(bug)) from bug

    with contextlib.suppress(OverError):
        property_()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name.replace(" ", "_"))
@pytest.mark.slow
def test_any_input_ends_cleanly_or_in_one_of_our_errors(target):
    hold(target, SECONDS)


@pytest.mark.slow
def test_undamaged_examples_are_read_cleanly():
    ended = {target.name: target.judge(target.sound) for target in TARGETS if target.sound is not None}
    assert ended == dict.fromkeys(ended, "clean")


def test_a_bug_is_found_shrunk_and_shown(capsys):
    def act(example: int, _: object) -> None:
        assert example < 1000

    with pytest.raises(AssertionError, match="AssertionError") as failure:
        hold(Target("a target", lambda: st.integers(0, 10**6), act), seconds=60)
    assert "example=1000" in "".join(failure.value.__notes__)


@pytest.mark.slow
def test_examples_do_not_depend_on_imported_modules(tmp_path, monkeypatch):
    def judged() -> list[str]:
        seen: list[str] = []
        hold(Target("a target", st.text, lambda example, _: seen.append(example)), seconds=60)
        return seen

    before = judged()
    (tmp_path / "imported.py").write_text(f"WORDS = {[f'word {number}' for number in range(99)]}")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("imported")
    assert judged() == before


def works(*_: object) -> None:
    while True:
        pass


def waits(*_: object) -> None:
    time.sleep(600)


@pytest.mark.parametrize(("limit", "act"), [("SECONDS", works), ("WAITING", waits)])
def test_an_example_that_hangs_is_a_bug(monkeypatch, limit, act):
    monkeypatch.setattr(judging, limit, 0.1)
    with pytest.raises(Bug, match="it hangs"):
        Target("a target", st.integers, act).judge(0)
