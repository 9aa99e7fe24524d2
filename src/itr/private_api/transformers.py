"""Private names of transformers."""

from __future__ import annotations

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
