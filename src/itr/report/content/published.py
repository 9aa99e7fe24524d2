"""Published results for a run's config, and the settings in which the run differs from that config."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from itr.commands.configs import config_folder
from itr.report.content.runs import Run

# Paths and loading options, which do not affect the model.
IGNORED_SETTINGS = ("root", "default_root_dir", "features", "stage1", "num_workers", "enable_model_summary")


@dataclass
class PublishedResults:
    """Recalls that a paper reports, `i2t_r1` ... `t2i_r10` and `rsum` in percent, and the test set used."""

    source: str
    set_name: str
    images: int
    figures: dict[str, float]


def published_results(config_name: str) -> PublishedResults | None:
    """The results that a paper reports for a shipped config; None if it reports none."""
    table = yaml.safe_load((files("itr.report") / "published.yaml").read_text(encoding="utf-8"))
    row = table["figures"].get(config_name)
    if row is None:
        return None
    test_set = table["sets"][config_name.partition("_")[0]]
    figures = {f"{way}_r{k}": value for way in ("i2t", "t2i") for k, value in zip((1, 5, 10), row[way], strict=True)}
    source = table["sources"][row["source"]]
    return PublishedResults(source, test_set["name"], test_set["images"], {**figures, "rsum": row["rsum"]})


def changed_settings(run: Run) -> list[str] | None:
    """The settings in which a run differs from its shipped config; None if it was not made with one."""
    path = config_folder() / f"{run.config_name}.yaml"
    if not run.config_name or not run.config or not path.is_file():
        return None
    return [
        f"{name} is {_brief(actual)} instead of {_brief(shipped)}"
        for name, shipped, actual in _differences("", _expand(yaml.safe_load(path.read_text()), ""), run.config)
    ]


def _expand(value: Any, key: str) -> Any:
    """A shipped config with the config files that it refers to inserted."""
    if key in ("data", "backbone") and isinstance(value, str) and value.endswith(".yaml"):
        return _expand(yaml.safe_load((config_folder() / value).read_text(encoding="utf-8")), key)
    if isinstance(value, dict):
        return {name: _expand(item, name) for name, item in value.items()}
    return [_expand(item, "") for item in value] if isinstance(value, list) else value


def _differences(name: str, shipped: Any, actual: Any) -> list[tuple[str, Any, Any]]:
    """Settings of `shipped` that differ in `actual`, which may contain more."""
    last = name.rpartition(".")[2]
    if last in IGNORED_SETTINGS:
        return []
    if isinstance(shipped, dict) and isinstance(actual, dict):
        pairs = [(f"{name}.{key}".lstrip("."), value, actual.get(key)) for key, value in shipped.items()]
        return [found for pair in pairs for found in _differences(*pair)]
    if isinstance(shipped, list) and isinstance(actual, list) and len(shipped) == len(actual):
        pairs = [(f"{name}.{i}", *both) for i, both in enumerate(zip(shipped, actual, strict=True))]
        return [found for pair in pairs for found in _differences(*pair)]
    same_class = str(shipped).rpartition(".")[2] == str(actual).rpartition(".")[2]
    same = same_class if last == "class_path" else _equal(shipped, actual)
    return [] if same else [(name, shipped, actual)]


def _equal(shipped: Any, actual: Any) -> bool:
    return bool(shipped == actual) or str(shipped) == str(actual)


def _brief(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
