"""Makes docs/performance.md from the files of results.

    python benchmarks/page.py

Each section is one benchmark; its words are here, its figures in `results/cpu` and `results/cuda`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from measuring import RESULTS, Line, read

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
DEVICES = {"cpu": "On a machine without a GPU", "cuda": "On a machine with a GPU"}
HEAD = """# Figures of speed

Made by `python benchmarks/page.py` from the files in `benchmarks/results`, which `make bench` writes; nothing here is
written by hand. No test depends on a time.

What the columns say:

- **ours**: the figure of `itr`. The unit tells its kind: of a rate (images/s, 1/s) more is better, of a time or
  size less.
- **beside it**: a peer, or a bare loop, which is the same work written down plainly, without the parts around it. It is
  measured in the same run, in turn with ours.
- **limit**: the rate, time or size that no program of this kind passes, calculated from operations and bytes, or the
  part of the work that can't be left out, timed alone. The notes below the table tell which.
- **ratio**: ours over what is beside it: 2 is twice the rate, or twice the time. It is the median of the rounds'
  ratios, which need not be the ratio of the medians that are shown.
- **wanted**: the bound of the ratio, or of ours where there is no ratio; the last column tells whether it is kept.

Absolute times are of the machine that is named, and mean little elsewhere.
"""
NO_GPU = "\nNo GPU was at hand: **nothing below was measured on one**, and every line that needs one says so.\n"
SECTIONS = {
    "input_pipeline": (
        "Input pipeline",
        "From tars to batches, through the whole data module. The bare loop is simplejpeg's decoding and torchvision's "
        "crop and resize of bytes, from memory. The authors' recipe is Pillow's decoding of whole images, crop and "
        "resize, and a normalised float tensor of each; that of OpenCV and floats is the older one of VSE++.",
    ),
    "training_step": (
        "Training step",
        "One step of `itr fit` beside the bare towers and beside other loops. `narrow` is a CLIP of three layers of "
        "width 128 on images of 96 pixels, `small VSE` is `itr`'s own without further options.",
    ),
    "overheads": ("What the methods cost", "A step with CUSA or D2S-VSE beside the same step without it."),
    "loss_at_scale": ("Loss of large batches", "`model.large_batch.loss_chunk` beside the loss of all rows at once."),
    "cost_curves": ("Cost curves", "Measured points, the line fitted to them, and what follows for large runs."),
    "start_up": ("Start-up", "Whole commands, from a new process on."),
    "evaluation": ("Exact ranks", "All ranks of both directions, ties counted."),
    "same_numbers": ("The same numbers", "Loss curves of fixed seeds on the CPU, beside those of an earlier commit."),
    "prepare": ("Shards", "`itr prepare` on files in the page cache, one process."),
}


def page(results: Path) -> str:
    """The whole page.

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
    """What one benchmark found on one machine."""
    machine = ", ".join(f"{key} {value}" for key, value in outcome["machine"].items())
    settings = ", ".join(f"{key}: {value}" for key, value in outcome["settings"].items())
    rows = ["| | | wanted | ours | beside it | limit | ratio | |", "|---|---|---|---|---|---|---|---|"]
    rows += [f"| {place} {row(line)}" for place, line in enumerate(lines, start=1)]
    text = f"**{DEVICES[device]}** ({machine}). {settings}.\n\n" + "\n".join(rows) + "\n"
    tables = [table(name, value) for name, value in outcome["figures"].items()]
    return "\n".join([text, *notes(lines), *tables]).rstrip() + "\n"


def row(line: Line) -> str:
    """A line of the table."""
    bounds = [f"at least {number(line.at_least)}"] if line.at_least is not None else []
    bounds += [f"at most {number(line.at_most)}"] if line.at_most is not None else []
    wanted = ", ".join(bounds)
    if line.ours is None:
        return f"| {line.what} | {wanted} | not measured: {line.unmeasured} | {line.beside} | {limit(line)} | | |"
    theirs = "" if line.theirs is None else f"{line.beside}: {number(line.theirs)} {line.unit}"
    ratio = "" if line.ratio is None else number(line.ratio)
    kept = {True: "kept", False: "**falls short**", None: ""}[line.met]
    ours = f"{number(line.ours)} {line.unit}".rstrip()
    return f"| {line.what} | {wanted} | {ours} | {theirs} | {limit(line)} | {ratio} | {kept} |"


def limit(line: Line) -> str:
    """The calculated limit of a line."""
    return "" if line.limit is None else f"{number(line.limit)} {line.unit}".rstrip()


def notes(lines: list[Line]) -> list[str]:
    """How limits are calculated, remarks and profiles, each once with the places of the lines that it is about."""
    places: dict[str, list[str]] = {}
    for place, line in enumerate(lines, start=1):
        for text in (f"Limit: {line.limit_by}." if line.limit_by else "", line.remark, profile(line)):
            if text:
                places.setdefault(text, []).append(str(place))
    return [f"- {', '.join(found)}: {text}" for text, found in places.items()]


def profile(line: Line) -> str:
    """What takes the time of a line, the largest share first."""
    shares = sorted(line.profile.items(), key=lambda item: -item[1])
    return "Profile: " + ", ".join(f"{what} {100 * share:.0f} %" for what, share in shares) + "." if shares else ""


def table(name: str, value: Any) -> str:
    """Further figures: rows of one kind as a table, a text as it is, anything else as a list."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        head = list(value[0])
        rows = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        rows += [f"| {' | '.join(number(entry[key]) for key in head)} |" for entry in value]
        return f"\n{name}:\n\n" + "\n".join(rows) + "\n"
    if isinstance(value, dict):
        return f"\n{name}: " + ", ".join(f"{key} {number(entry)}" for key, entry in value.items()) + ".\n"
    return f"\n{name}: {number(value)}\n"


def number(value: Any) -> str:
    """A number with three digits that count, anything else as text."""
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
