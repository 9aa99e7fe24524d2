"""Configs of transformers: checked before anything is built, and described so that a checkpoint can build it again."""

from __future__ import annotations

import difflib
from typing import Any

from itr.component import plain
from itr.errors import UserError, quoted
from itr.private_api.transformers import NAME_KEY

# Towers that transformers builds only as parts of two-tower models: by `model_type`, the stem of their classes.
INNER_TOWERS = {
    "siglip_text_model": "SiglipText", "siglip2_text_model": "Siglip2Text", "metaclip_2_text_model": "MetaClip2Text",
    "metaclip_2_vision_model": "MetaClip2Vision",
}  # fmt: skip
# Config entries that are not part of the architecture; the first two depend on a machine and a version.
_NOT_ARCHITECTURE = {
    NAME_KEY, "transformers_version", "architectures", "dtype", "id2label", "label2id", "problem_type",
    "return_dict", "output_attentions", "output_hidden_states", "label_names", "num_classes",
}  # fmt: skip


def checked_config(argument: str, settings: dict[str, Any]) -> Any:
    """The config of transformers with these settings, also of its towers if it has any.

    Args:
        argument: names the settings in messages.
        settings: `model_type`, and what should differ from its defaults.

    Raises:
        UserError: a setting is unknown or has a wrong value.
    """
    config_class = _config_class(argument, str(settings.get("model_type", "")))
    default = config_class()
    _check_keys(argument, settings, default)
    for name, part in _parts(default).items():
        if isinstance(settings.get(name), dict):
            _check_keys(f"{argument}.{name}", settings[name], part)
    try:
        return config_class(**{name: value for name, value in settings.items() if name != "model_type"})
    except Exception as error:  # transformers' validation errors have their own types
        raise UserError(f"{argument}: {quoted(error)}") from error


def _config_class(argument: str, model_type: str) -> Any:
    import transformers

    if model_type in INNER_TOWERS:
        return getattr(transformers, f"{INNER_TOWERS[model_type]}Config")
    known = transformers.CONFIG_MAPPING
    if model_type not in known:
        suggestion = suggest_name(model_type, [*known.keys(), *INNER_TOWERS])
        raise UserError(f"{argument}: transformers has no model_type {model_type!r}{suggestion}")
    return known[model_type]


def describe_config(config: Any) -> dict[str, Any]:
    """The settings of a config of transformers that define the architecture, in plain types."""
    known = _known_keys(config)
    described = {key: value for key, value in config.to_dict().items() if key in known - _NOT_ARCHITECTURE}
    described |= {key: describe_config(part) for key, part in _parts(config).items()}
    return {"model_type": config.model_type, **plain(described)}


def suggest_name(word: str, words: Any) -> str:
    """A hint with the most similar of `words`; empty if none is similar."""
    match = difflib.get_close_matches(word, [str(candidate) for candidate in words], n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


def _check_keys(argument: str, settings: dict[str, Any], config: Any) -> None:
    known = _known_keys(config)
    for key in settings:
        if key not in known:
            raise UserError(f"{argument}: {config.model_type} has no setting {key!r}{suggest_name(key, known)}")


def _parts(config: Any) -> dict[str, Any]:
    """The configs of both towers, for a model that has them."""
    found = {name: getattr(config, name, None) for name in ("text_config", "vision_config")}
    return {name: part for name, part in found.items() if hasattr(part, "to_dict")}


def _known_keys(config: Any) -> set[str]:
    default: Any = type(config)()
    return set(default.to_dict()) | set(default.attribute_map)
