"""The table of settings, with one column per run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from itr.report.content.entry import RunEntry
from itr.report.content.runs import Run
from itr.report.page.markup import Content, Markup, swatch, tag


def run_label(entry: RunEntry, number: int, several: bool) -> Content:
    """A run's name, with its color if there are several runs."""
    return [swatch(number), " ", entry.name] if several else entry.name


def settings_table(entries: Sequence[RunEntry]) -> Markup:
    """The settings of the runs, one column per run; a value that all runs share appears once."""
    columns = [_facts(entry) for entry in entries]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = []
    for name in names:
        cells = [column.get(name, "") for column in columns]
        same = len(set(cells)) == 1
        shown = [tag("td", cells[0], colspan=str(len(cells)))] if same else [tag("td", cell) for cell in cells]
        rows.append(tag("tr", tag("th", name, scope="row"), *shown))
    several = len(entries) > 1
    head = tag("tr", tag("td"), *(tag("th", run_label(e, i, several), scope="col") for i, e in enumerate(entries)))
    whole = tag("table", tag("thead", head) if several else "", tag("tbody", *rows), class_="facts")
    return tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label="Settings")


def _facts(entry: RunEntry) -> dict[str, str]:
    run = entry.run
    epochs, batch = run.setting("trainer.max_epochs"), run.setting("data.batch_size")
    optimizer = {key: run.setting(f"model.optimizer.{key}") for key in ("lr", "schedule", "weight_decay")}
    found = {
        "config": f"{run.config_name}.yaml" if run.config_name else "unknown",
        **({"changed settings": "; ".join(entry.changes)} if entry.changes else {}),
        "backbone": describe_backbone(run),
        "objective": describe_class(run.setting("model.objective", {})),
        "methods": ", ".join(describe_class(method) for method in run.setting("model.methods", [])) or "none",
        "optimizer": ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in optimizer.items() if v is not None),
        "training": f"{epochs} epochs, batch size {batch}, seed {run.setting('seed_everything')}",
        **entry.facts,
    }
    return found if run.config else entry.facts


def describe_backbone(run: Run) -> str:
    """The class and towers of a run's backbone in a few words."""
    given: Any = run.setting("model.backbone", {})
    options = given.get("init_args", {})
    parts = [str(options[key]) for key in ("vision", "text", "model", "pretrained") if options.get(key)]
    scratch = [options.get(key, {}) or {} for key in ("vision_config", "text_config")]
    parts += [f"{config['model_type']} from scratch" for config in scratch if config.get("model_type")]
    return describe_class({"class_path": given.get("class_path", "")}) + (f": {', '.join(parts)}" if parts else "")


def describe_class(value: Any) -> str:
    """A configured class with its plain arguments: `InfoNCE (temperature 0.07)`."""
    if not isinstance(value, dict):
        return str(value)
    name = str(value.get("class_path", "")).rpartition(".")[2]
    options = value.get("init_args") or {}
    plain = [f"{key} {item}" for key, item in options.items() if isinstance(item, (int, float, str))]
    return name + (f" ({', '.join(plain)})" if plain else "")
