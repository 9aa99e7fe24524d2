"""Read a run folder: config, checkpoint, metrics files and training history."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itr.commands.configs import config_folder, made_with
from itr.commands.inputs import check_run_folder
from itr.errors import UserError
from itr.files.documents import read_json_document, read_yaml_document

MOST = 1e300  # a larger number in a metrics file is no metric
MOST_LOG = 500_000_000  # bytes; logs of a run have some millions
Curve = list[tuple[float, float]]
"""Values by training step."""


@dataclass
class MetricsFile:
    """One metrics file: numbers by full name, such as `test/i2t_r1`, and the other entries as `about`."""

    name: str
    figures: dict[str, float]
    about: dict[str, Any] = field(default_factory=dict)

    def provenance(self, part: str) -> dict[str, Any]:
        """What the file says of the `model` or the `data`; empty if it says nothing."""
        about = self.about.get("about")
        found = about.get(part) if isinstance(about, dict) else None
        return found if isinstance(found, dict) else {}

    @property
    def by_split(self) -> dict[str, float]:
        """The figures, with the split that was measured in place of `test/`: `itr test` measures any split."""
        split = self.provenance("data").get("split")
        if not isinstance(split, str) or not split:
            return self.figures
        return {f"{split}/{k[5:]}" if k.startswith("test/") else k: value for k, value in self.figures.items()}


@dataclass
class Run:
    """A run folder, read without opening its checkpoint.

    Attributes:
        folder: its path.
        name: its name on the page, unique there.
        config: parsed `config.yaml`; empty if the file is missing.
        config_text: text of `config.yaml`.
        config_name: the config it was made with, shipped or user-defined, without `.yaml`; empty if unknown.
        metrics: its metrics files.
        history: every logged curve by name.
        notes: what is missing or damaged, as sentences for the page.
    """

    folder: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    config_name: str = ""
    metrics: list[MetricsFile] = field(default_factory=list)
    history: dict[str, Curve] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def checkpoint(self) -> Path | None:
        """The best checkpoint, else the last one, else None."""
        paths = [self.folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
        return next((path for path in paths if path.is_file()), None)

    def setting(self, path: str, default: Any = None) -> Any:
        """The value of the config at a dotted path."""
        value: Any = self.config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return default if value is None else value


def read_run(folder: Path, name: str) -> Run:
    """Read a run folder; missing and damaged files are listed in its notes.

    Raises:
        UserError: the folder does not exist, or it contains no file that a run writes.
    """
    check_run_folder(folder)
    run = Run(folder, name)
    _read_config(run)
    run.metrics = _metrics_files(run)
    try:
        run.history = read_history(sorted(folder.glob("logs/*/metrics.csv"), key=_version))
    except (OSError, ValueError, csv.Error) as error:
        run.notes.append(f"Could not read the training curves: {error}")
    if not (run.config or run.checkpoint or run.metrics or run.history):
        raise UserError(
            f"{folder} is not a run folder: it contains no config.yaml, checkpoints/, metrics.json or logs/; "
            "give the folder that was set as --trainer.default_root_dir of `itr fit`"
        )
    if not run.metrics:
        run.notes.append("No stored metrics: metrics.json is missing; `itr test` writes it")
    if not run.history:
        run.notes.append("No training curves: logs/*/metrics.csv is missing or empty")
    return run


def _read_config(run: Run) -> None:
    path = run.folder / "config.yaml"
    if not path.is_file():
        run.notes.append("No settings: config.yaml is missing")
        return
    try:
        loaded = read_yaml_document(path)
        run.config_text = path.read_text(encoding="utf-8")
    except UserError as error:
        run.notes.append(f"No settings: {error}")
        return
    run.config = loaded if isinstance(loaded, dict) else {}
    named = made_with(str(path))
    if named != path.name:
        run.config_name = named.split(", ")[-1].removesuffix(".yaml")
        return
    # Shipped configs write to runs/NAME, so the folder gives the name if the file itself does not.
    name = Path(str(run.setting("trainer.default_root_dir", ""))).name
    run.config_name = name if (config_folder() / f"{name}.yaml").is_file() else ""


def _metrics_files(run: Run) -> list[MetricsFile]:
    found = []
    for path in sorted(run.folder.glob("*.json")):
        try:
            content = read_json_document(path)
        except UserError as error:
            run.notes.append(str(error))
            continue
        items = content.items() if isinstance(content, dict) else ()
        figures = {name: float(value) for name, value in items if _is_figure(value)}
        if figures:
            about = {name: value for name, value in items if not _is_figure(value)}
            found.append(MetricsFile(path.name, figures, about))
    return found


def _is_figure(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MOST


def _version(path: Path) -> tuple[int, str]:
    number = re.search(r"(\d+)$", path.parent.name)
    return int(number[1]) if number else -1, path.parent.name


def read_history(paths: list[Path]) -> dict[str, Curve]:
    """The curves of several logs by name, in order of steps.

    If a log starts at a step that an earlier log has passed, because the run was resumed from an older checkpoint or
    restarted from scratch, it replaces the rest of the earlier log.
    """
    history: dict[str, Curve] = {}
    for path in paths:
        rows = _rows(path)
        if rows:
            begin = rows[0][0]
            history = {name: [point for point in curve if point[0] < begin] for name, curve in history.items()}
        for step, values in rows:
            for name, value in values.items():
                history.setdefault(name, []).append((step, value))
    return {name: curve for name, curve in history.items() if curve}


def _rows(path: Path) -> list[tuple[float, dict[str, float]]]:
    if not path.is_file() or path.stat().st_size > MOST_LOG:  # a pipe would never end
        raise ValueError(f"{path} is not a file of at most {MOST_LOG:,} bytes")
    rows = []
    with path.open(encoding="utf-8", newline="") as stream:
        for line in csv.DictReader(stream):
            values = {name: _number(text) for name, text in line.items() if name not in (None, "step", "epoch")}
            step = _number(line.get("step"))
            if abs(step) < MOST:
                rows.append((step, {name: value for name, value in values.items() if abs(value) < MOST}))
    return rows


def _number(text: object) -> float:
    try:
        return float(str(text))
    except ValueError:
        return math.nan


def run_names(folders: list[Path]) -> list[str]:
    """The shortest path endings that distinguish the runs: `baseline/0` and `CUSA/0`, or just `demo`.

    Raises:
        UserError: a run is given twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names) and not any(name.isdigit() for name in names):
            return names
    raise UserError("the same run is given twice; give each run once")
