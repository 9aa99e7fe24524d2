"""Private names of transformers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

NAME_KEY = "_name_or_path"
"""Key of a config's `to_dict` with the name or path from which it was loaded.

Missing: a form of a config that does not depend on the machine and the version that loaded it.
"""


def attention_of(config: Any) -> str | None:
    """The attention implementation that a model with this config uses, such as `sdpa`; None if there is only one.

    Missing: a public property that matches `set_attn_implementation`.
    """
    name: str | None = getattr(config, "_attn_implementation", None)
    return name


@dataclass(frozen=True)
class LoadedModel:
    """A model that transformers has loaded, and what did not fit.

    Attributes:
        model: the model.
        missing: names that the files lack and that have random values.
        unexpected: names that only the files have.
        misshapen: for a name whose shape differs, a text with both shapes; its value is random.
        errors: why weights could not be converted.
    """

    model: Any
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]
    errors: tuple[str, ...]


@contextmanager
def recorded_loads() -> Iterator[list[LoadedModel]]:
    """Within the block, transformers reports nothing about loaded weights; what it would report is recorded.

    Missing: a public way to learn what another library, such as sentence-transformers, has loaded by
    `from_pretrained`, which returns it only to its caller and otherwise prints a table.
    """
    from transformers import modeling_utils
    from transformers.utils import logging

    loads: list[LoadedModel] = []

    def record(*, model: Any, loading_info: Any, **_: Any) -> None:
        loads.append(
            LoadedModel(
                model,
                tuple(sorted(loading_info.missing_keys)),
                tuple(sorted(loading_info.unexpected_keys)),
                tuple(f"{n} ({list(a)} instead of {list(b)})" for n, a, b in sorted(loading_info.mismatched_keys)),
                tuple(map(str, (*loading_info.error_msgs, *loading_info.conversion_errors.values()))),
            )
        )

    report = modeling_utils.log_state_dict_report
    modeling_utils.log_state_dict_report = record
    hides_bar = logging.is_progress_bar_enabled() and not sys.stderr.isatty()  # in a file it is one long line
    if hides_bar:
        logging.disable_progress_bar()
    try:
        yield loads
    finally:
        modeling_utils.log_state_dict_report = report
        if hides_bar:
            logging.enable_progress_bar()
