"""Builds docs/performance.md from the result files.

    python benchmarks/page.py

Each section is one benchmark. Its text is here; its figures are in `results/cpu` and `results/cuda`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from measuring import RESULTS, Line, read

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
DEVICES = {"cpu": "On a machine without a GPU", "cuda": "On a machine with a GPU"}
HEAD = """# Performance measurements

`python benchmarks/page.py` generates this page from the files in `benchmarks/results`, which `make bench` writes.
Nothing here is written by hand, and no test depends on a time.

The columns:

- **target**: the bound on the ratio, or on our value if there is no ratio. The last column says whether it is met.
- **ours**: the value of `itr`. Higher is better for a rate (images/s, 1/s); lower is better for a time or a size.
- **reference**: another program, or a bare loop that does the same work without anything around it. It takes turns
  with ours in the same run.
- **limit**: the rate, time or size that no program of this kind can beat. It is calculated from operations and bytes,
  or it is the time of the indispensable part of the work alone. The notes below each table say which.
- **ratio**: our value divided by the reference: 2 is twice the rate, or twice the time. It is the median of the ratios
  of all rounds, which may differ from the ratio of the medians shown.

Absolute times apply to the named machine and mean little elsewhere.
"""
NO_GPU = "\nNo GPU was available: **nothing below was measured on one**, and every line that needs one says so.\n"
SECTIONS = {
    "input_pipeline": (
        "Input pipeline",
        "From tars to batches, through the whole data module. The bare loop decodes with simplejpeg and crops and "
        "resizes bytes with torchvision, from memory. The authors' recipe decodes whole images with Pillow, crops, "
        "resizes, and makes a normalised float tensor of each. The OpenCV float recipe is the older one of VSE++.",
    ),
    "training_step": (
        "Training step",
        "One step of `itr fit` compared with the bare towers and with other loops. `narrow` is a CLIP with three "
        "layers of width 128 on images of 96 pixels; `small VSE` is the default VSE of `itr`.",
    ),
    "frozen_towers": (
        "Frozen towers",
        "`photos.yaml`, whose frozen towers run once: this pass, and an epoch on the outputs that it keeps.",
    ),
    "overheads": ("Cost of the methods", "A step with CUSA or D2S-VSE compared with the same step without it."),
    "loss_at_scale": (
        "Loss of large batches",
        "`model.large_batch.loss_chunk` compared with the loss of all rows at once.",
    ),
    "cost_curves": ("Cost curves", "Measured points, the curves fitted to them, and projections for large runs."),
    "start_up": ("Start-up", "Whole commands, each in a new process."),
    "evaluation": ("Exact ranks", "All ranks in both directions, including ties."),
    "same_numbers": (
        "Reproducibility",
        "Loss curves with fixed seeds on the CPU, compared with those of an earlier commit.",
    ),
    "prepare": ("Shards", "`itr prepare` with one process on files in the page cache."),
}


def page(results: Path) -> str:
    """Return the whole page.

    Args:
        results: the folder with `cpu/*.json` and `cuda/*.json`.
    """
    found = {name: {d: results / d / f"{name}.json" for d in DEVICES} for name in SECTIONS}
    gpu = any(files["cuda"].exists() for files in found.values())
    parts = [HEAD + ("" if gpu else NO_GPU)]
    for name, (title, text) in SECTIONS.items():
        files = {device: path for device, path in found[name].items() if path.exists()}
        if not files:
            parts.append(f"## {title}\n\nNot measured yet: `python benchmarks/{name}.py`.\n")
            continue
        parts.append(f"## {title}\n\n{text} `python benchmarks/{name}.py`\n")
        parts += [section(device, *read(path)) for device, path in files.items()]
    return "\n".join(parts)


def section(device: str, outcome: dict[str, Any], lines: list[Line]) -> str:
    """Return the results of one benchmark on one machine."""
    machine = ", ".join(f"{key} {value}" for key, value in outcome["machine"].items())
    settings = ", ".join(f"{key}: {value}" for key, value in outcome["settings"].items())
    rows = ["| | | target | ours | reference | limit | ratio | |", "|---|---|---|---|---|---|---|---|"]
    rows += [f"| {place} {row(line)}" for place, line in enumerate(lines, start=1)]
    text = f"**{DEVICES[device]}** ({machine}). {settings}.\n\n" + "\n".join(rows) + "\n"
    tables = [figures_table(name, value) for name, value in outcome["figures"].items()]
    return "\n".join([text, *notes(lines), *tables]).rstrip() + "\n"


def row(line: Line) -> str:
    """Return a row of the results table."""
    bounds = [f"at least {number(line.at_least)}"] if line.at_least is not None else []
    bounds += [f"at most {number(line.at_most)}"] if line.at_most is not None else []
    target = ", ".join(bounds)
    if line.ours is None:
        return f"| {line.what} | {target} | not measured: {line.unmeasured} | {line.beside} | {limit(line)} | | |"
    theirs = "" if line.theirs is None else f"{line.beside}: {number(line.theirs)} {line.unit}"
    ratio = "" if line.ratio is None else number(line.ratio)
    status = {True: "met", False: "**missed**", None: ""}[line.met]
    ours = f"{number(line.ours)} {line.unit}".rstrip()
    return f"| {line.what} | {target} | {ours} | {theirs} | {limit(line)} | {ratio} | {status} |"


def limit(line: Line) -> str:
    """Return the limit of a line with its unit."""
    return "" if line.limit is None else f"{number(line.limit)} {line.unit}".rstrip()


def notes(lines: list[Line]) -> list[str]:
    """List limits, remarks and profiles, each once, with the numbers of the lines that it applies to."""
    places: dict[str, list[str]] = {}
    for place, line in enumerate(lines, start=1):
        for text in (f"Limit: {line.limit_by}." if line.limit_by else "", line.remark, profile(line)):
            if text:
                places.setdefault(text, []).append(str(place))
    return [f"- {', '.join(found)}: {text}" for text, found in places.items()]


def profile(line: Line) -> str:
    """Return the causes of a line's time, largest share first."""
    shares = sorted(line.profile.items(), key=lambda item: -item[1])
    return "Profile: " + ", ".join(f"{what} {100 * share:.0f} %" for what, share in shares) + "." if shares else ""


def figures_table(name: str, value: Any) -> str:
    """Format other figures: uniform rows as a table, a dictionary as a list, anything else as text."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        head = list(value[0])
        rows = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        rows += [f"| {' | '.join(number(entry[key]) for key in head)} |" for entry in value]
        return f"\n{name}:\n\n" + "\n".join(rows)
    if isinstance(value, dict):
        return f"\n{name}: " + ", ".join(f"{key} {number(entry)}" for key, entry in value.items()) + "."
    return f"\n{name}: {number(value)}"


def number(value: Any) -> str:
    """Format a number with three significant digits, and anything else as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args()
    options.out.write_text(page(options.results), encoding="utf-8")


if __name__ == "__main__":
    main()
