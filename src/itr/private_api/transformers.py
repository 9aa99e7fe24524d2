"""Private names of transformers."""

from __future__ import annotations

from typing import Any

NAME_KEY = "_name_or_path"
"""Key of a config's `to_dict` that holds the name or the path it came from.

Missing: a form of a config without the machine and the version that it was loaded on.
"""


def attention_of(config: Any) -> str | None:
    """The implementation of attention that a model of this config runs, such as `sdpa`; None if it has no choice.

    Missing: a public property to match `set_attn_implementation`.
    """
    name: str | None = getattr(config, "_attn_implementation", None)
    return name
