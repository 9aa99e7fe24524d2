"""The plots of the page: training curves, recall at K, rank distributions, and recall by caption."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from itr.evaluation.retrieval import DIRECTIONS
from itr.report.content.entry import RunEntry
from itr.report.page.markup import Markup, tag
from itr.report.page.plots import Line, plot, steps

MOST_K = 100
COUNTS = ("train/skipped", "train/bad_shards", "train/skipped_steps")  # not plotted if always 0, as is usual
DASHES = ("", "6 3", "2 3")


def training_plots(entries: Sequence[RunEntry]) -> Markup:
    """One plot for each quantity logged during training, with all runs in it."""
    curves = [(name, curve) for entry in entries for name, curve in entry.run.history.items()]
    names = list(dict.fromkeys(name for name, curve in curves if name not in COUNTS or any(y for _, y in curve)))
    grouped = _groups(names)
    shown = [_history(title, unit, members, entries) for title, unit, members in grouped]
    return tag("div", *shown, class_="plots")


def _groups(names: list[str]) -> list[tuple[str, str, dict[str, str]]]:
    """Title and unit of each plot, and the label of each of its curves by logged name."""
    recalls = {way: {f"val/{way}_r{k}": f"R@{k}" for k in (1, 5, 10)} for way in DIRECTIONS}
    similarities = {"val/similarity_matched": "matched", "val/similarity_unmatched": "unmatched"}
    precisions = {f"val/all/{way}_map_at_r": title for way, title in DIRECTIONS.items()}
    groups = [
        ("Loss", "loss", {"train/loss": ""}),
        ("Validation: sum of recalls", "rsum", {"val/rsum": ""}),
        *((f"Validation: {title}", "percent", recalls[way]) for way, title in DIRECTIONS.items()),
        ("Validation: mAP@R over all true matches", "percent", precisions),
        ("Validation: mean cosine similarity of pairs", "cosine", similarities),
        ("Learning rate (highest group)", "learning rate", {"train/lr": ""}),
    ]
    taken = {name for _, _, members in groups for name in members}
    rest = [name for name in names if name.startswith(("train/", "lr")) and name not in taken]
    rest.sort(key=lambda name: ("temperature" in name, "/" in name.removeprefix("train/")))
    terms = [(_title(name), _words(name.rpartition("/")[2]), {name: ""}) for name in rest]
    return [groups[0], *terms, *groups[1:]]


def _title(name: str) -> str:
    """A logged name as a title: `Temperature`, `Gradient norm`, `CUSA: csa`."""
    method, slash, term = name.removeprefix("train/").rpartition("/")
    words = _words(term)
    return f"{method.upper()}: {words}" if slash else words.capitalize()


def _words(name: str) -> str:
    return name.replace("_", " ").replace("grad norm", "gradient norm")


def _history(title: str, unit: str, members: dict[str, str], entries: Sequence[RunEntry]) -> Markup:
    lines = []
    for number, entry in enumerate(entries):
        for dash, (name, label) in zip(DASHES, members.items(), strict=False):
            lines.append(Line(entry.name, entry.run.history.get(name, []), number, label, dash))
    return plot(title, "step", unit, lines)


def rank_plots(entries: Sequence[RunEntry]) -> Markup:
    """Recall at K and the distribution of ranks, in both directions."""
    shown = []
    for way, title in DIRECTIONS.items():
        ranks = _by_run(entries, way)
        candidates = max((_candidates(entry, way) for entry in entries), default=1)
        recall = [Line(name, recall_curve(found, candidates), number) for number, name, found in ranks]
        shown.append(plot(f"Recall at K, {title}", "K", "percent of queries", recall, log_x=True, zero=True))
        spread = [Line(name, distribution(found, candidates), number, marks=False) for number, name, found in ranks]
        shown.append(plot(f"Ranks, {title}", "rank of the first match", "percent of queries", spread, True, True))
    return tag("div", *shown[::2], *shown[1::2], class_="plots pairs")


def _by_run(entries: Sequence[RunEntry], way: str) -> list[tuple[int, str, Tensor]]:
    return [(number, e.name, e.measured.ranks[way]) for number, e in enumerate(entries) if e.measured]


def _candidates(entry: RunEntry, way: str) -> int:
    if not entry.measured:
        return 1
    return len(entry.measured.text_id if way == "i2t" else entry.measured.image_id)


def recall_curve(ranks: Tensor, candidates: int) -> list[tuple[float, float]]:
    """Percentage of ranks [Q], counted from 0, that are below K, for K up to 100 or the number of candidates."""
    last = min(MOST_K, candidates)
    found = torch.bincount(ranks.clamp(max=last).long(), minlength=last + 1)[:last].cumsum(0)
    shares = (100 * found.double() / len(ranks)).tolist()
    return [(float(k), share) for k, share in enumerate(shares, start=1)]


def distribution(ranks: Tensor, candidates: int) -> list[tuple[float, float]]:
    """Percentage of ranks [Q] in bins that double in width (1, 2-3, 4-7 ...), as an outline."""
    edges = [1]
    while edges[-1] <= candidates:
        edges.append(2 * edges[-1])
    counted = torch.bincount(torch.bucketize(ranks + 1, torch.tensor(edges[1:]), right=True), minlength=len(edges) - 1)
    return steps([float(min(edge, candidates)) for edge in edges], (100 * counted.double() / len(ranks)).tolist())


def recall_by_caption_plot(entries: Sequence[RunEntry]) -> Markup:
    """Percentage of images that their best, median and worst caption retrieves in the top K."""
    lines = []
    for number, entry in enumerate(entries):
        if entry.measured:
            found, candidates = entry.measured.views, len(entry.measured.image_id)
            for dash, name in zip(DASHES, ("best", "median", "worst"), strict=True):
                recall = recall_curve(getattr(found, name).double().ceil(), candidates)
                lines.append(Line(entry.name, recall, number, f"{name} caption", dash))
    title = "Images retrieved in the top K by their best, median and worst caption"
    return plot(title, "K", "percent of images", lines, log_x=True, zero=True)
