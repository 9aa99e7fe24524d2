"""The papers' figures for a run's config, and how far the run departs from that config."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from itr.commands.config_files import config_folder
from itr.report.content.runs import Run

# Where things lie and how they are read, which is no setting of the model.
PLACES = ("root", "default_root_dir", "features", "stage1", "num_workers", "enable_model_summary")


@dataclass
class Published:
    """Recalls of a paper: `i2t_r1` ... `t2i_r10` and `rsum` in percent, and the set they are of."""

    source: str
    set_name: str
    images: int
    figures: dict[str, float]


def published(config_name: str) -> Published | None:
    """What a paper reports for a shipped config, None where it reports nothing."""
    table = yaml.safe_load((files("itr.report") / "published.yaml").read_text(encoding="utf-8"))
    row = table["figures"].get(config_name)
    if row is None:
        return None
    of = table["sets"][config_name.partition("_")[0]]
    figures = {f"{way}_r{k}": value for way in ("i2t", "t2i") for k, value in zip((1, 5, 10), row[way], strict=True)}
    return Published(table["sources"][row["source"]], of["name"], of["images"], {**figures, "rsum": row["rsum"]})


def departures(run: Run) -> list[str] | None:
    """Settings in which a run differs from the shipped config it was made with; None where it names none."""
    path = config_folder() / f"{run.config_name}.yaml"
    if not run.config_name or not run.config or not path.is_file():
        return None
    return [
        f"{name} is {_brief(actual)} instead of {_brief(wanted)}"
        for name, wanted, actual in _differences("", _whole(yaml.safe_load(path.read_text()), ""), run.config)
    ]


def _whole(value: Any, key: str) -> Any:
    """A shipped config with the parts that it names put in their places."""
    if key in ("data", "backbone") and isinstance(value, str) and value.endswith(".yaml"):
        return _whole(yaml.safe_load((config_folder() / value).read_text(encoding="utf-8")), key)
    if isinstance(value, dict):
        return {name: _whole(item, name) for name, item in value.items()}
    return [_whole(item, "") for item in value] if isinstance(value, list) else value


def _differences(name: str, wanted: Any, actual: Any) -> list[tuple[str, Any, Any]]:
    """What `wanted` says otherwise than `actual`, which may say more."""
    last = name.rpartition(".")[2]
    if last in PLACES:
        return []
    if isinstance(wanted, dict) and isinstance(actual, dict):
        pairs = [(f"{name}.{key}".lstrip("."), value, actual.get(key)) for key, value in wanted.items()]
        return [found for pair in pairs for found in _differences(*pair)]
    if isinstance(wanted, list) and isinstance(actual, list) and len(wanted) == len(actual):
        pairs = [(f"{name}.{i}", *both) for i, both in enumerate(zip(wanted, actual, strict=True))]
        return [found for pair in pairs for found in _differences(*pair)]
    short = str(wanted).rpartition(".")[2] == str(actual).rpartition(".")[2]
    same = short if last == "class_path" else _equal(wanted, actual)
    return [] if same else [(name, wanted, actual)]


def _equal(wanted: Any, actual: Any) -> bool:
    return bool(wanted == actual) or str(wanted) == str(actual)


def _brief(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
