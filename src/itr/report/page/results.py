"""The tables of metrics: recalls next to published results, differences, recall by caption, embedding space."""

from __future__ import annotations

from collections.abc import Sequence

from itr.evaluation.bootstrap import Difference
from itr.report.content.compare import COMPARED, compare
from itr.report.content.entry import RunEntry
from itr.report.page.facts import run_label
from itr.report.page.markup import Content, Markup, html_table, tag

RECALLS = [f"{way}_{name}" for way in ("i2t", "t2i") for name in ("r1", "r5", "r10", "medr", "meanr")]
PRECISIONS = ["all/i2t_map_at_r", "all/t2i_map_at_r"]
LOWER_IS_BETTER = ("medr", "meanr")
HEAD = ["R@1", "R@5", "R@10", "median", "mean"]


def recall_tables(entries: Sequence[RunEntry], split: str) -> list[Markup]:
    """One table for each protocol in the metrics files, with the published results in the last rows."""
    tables = [_recall_table(name, rows) for name, rows in _protocols(entries, split).items()]
    stored = [_stored(entry, split) for entry in entries if entry.measured]
    computed = [entry.measured.figures for entry in entries if entry.measured]
    if all(_agrees(file, figures) for file, figures in zip(stored, computed, strict=True) if file):
        return tables
    words = (
        "The metrics in metrics.json differ from those measured for this page, so they come from a different "
        "checkpoint or different data. The rest of this page shows what was measured for it."
    )
    return [*tables, tag("p", words, class_="note")]


def _stored(entry: RunEntry, split: str) -> dict[str, float]:
    """The metrics that metrics.json contains for a split."""
    files = [file.by_split for file in entry.run.metrics if file.name == "metrics.json"]
    start = f"{split}/"
    return {key.removeprefix(start): v for figures in files for key, v in figures.items() if key.startswith(start)}


Row = tuple[Content, dict[str, float], bool]
"""Label, metrics, and whether they are published results."""


def _protocols(entries: Sequence[RunEntry], split: str) -> dict[str, list[Row]]:
    """Rows by protocol: stored metrics, metrics measured for this page if they differ, and published results."""
    tables: dict[str, list[Row]] = {}
    several = len(entries) > 1
    for number, entry in enumerate(entries):
        name = run_label(entry, number, several)
        for file in entry.run.metrics:
            figures, origin = file.by_split, entry.origin(file, split)
            for protocol in [key.removesuffix("/i2t_r1") for key in figures if key.endswith("/i2t_r1")]:
                start = f"{protocol}/"
                values = {k.removeprefix(start): v for k, v in figures.items() if k.startswith(start)}
                names = [text for text in (file.name * (file.name != "metrics.json"), origin) if text]
                label: Content = [name, f" ({', '.join(names)})"] if names else name
                tables.setdefault(protocol, []).append((label, values, False))
        if entry.measured and not _agrees(_stored(entry, split), entry.measured.figures):
            computed = {k if "map" not in k else f"all/{k}": v for k, v in entry.measured.figures.items()}
            tables.setdefault(split, []).append(([name, " (measured for this page)"], computed, False))
    papers = {e.run.config_name: e.published for e in entries if e.published}
    for name, paper in papers.items():
        label = f"{paper.source}, {paper.set_name}" + (f": {name}" if len(papers) > 1 else "")
        tables.setdefault(split, []).append((label, paper.figures, True))
    return tables


def _agrees(stored: dict[str, float], computed: dict[str, float]) -> bool:
    return abs(stored.get("rsum", -1.0) - computed["rsum"]) < 0.05


def _recall_table(protocol: str, rows: list[Row]) -> Markup:
    columns = [*RECALLS, "rsum", *(name for name in PRECISIONS if any(name in row[1] for row in rows))]
    best = {name: _best(name, rows) for name in columns}
    body = []
    for label, figures, paper in rows:
        cells = [_figure(figures.get(name), best[name], paper) for name in columns]
        body.append(tag("tr", tag("th", label, scope="row"), *cells, class_="paper" if paper else None))
    groups = [tag("td"), _group("image to text", 5), _group("text to image", 5), tag("td")]
    precisions = ["i2t", "t2i"][: len(columns) - len(RECALLS) - 1]
    groups += [_group("mAP@R", 2)] if precisions else []
    head = tag("tr", tag("td"), *(tag("th", name, scope="col") for name in [*HEAD, *HEAD, "rsum", *precisions]))
    title = f"{protocol}: recall in percent, median and mean rank counted from 1"
    whole = tag("table", tag("caption", title), tag("thead", tag("tr", *groups), head), tag("tbody", *body))
    return tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label=title)


def _group(name: str, columns: int) -> Markup:
    return tag("th", name, scope="colgroup", colspan=str(columns))


def _best(name: str, rows: list[Row]) -> float | None:
    """The best value of a column, if there are several runs."""
    values = [figures[name] for _, figures, paper in rows if name in figures and not paper]
    if len(values) < 2 or len(set(values)) < 2:
        return None
    return min(values) if name.endswith(LOWER_IS_BETTER) else max(values)


def _figure(value: float | None, best: float | None, paper: bool) -> Markup:
    if value is None:
        return tag("td", "\N{EN DASH}")
    return tag("td", f"{value:.1f}", class_="best" if value == best and not paper else None)


def other_metrics_table(entries: Sequence[RunEntry]) -> Markup:
    """All metrics in the files that the recall tables do not show."""
    columns: list[dict[str, float]] = []
    for entry in entries:
        figures = {key: value for file in entry.run.metrics for key, value in file.figures.items()}
        known = {*RECALLS, "rsum", *PRECISIONS}
        columns.append({k: v for k, v in figures.items() if not any(k.endswith("/" + name) for name in known)})
    names = list(dict.fromkeys(name for column in columns for name in column))
    if not names:
        return Markup()
    rows = [[name, *(f"{c[name]:.2f}" if name in c else "\N{EN DASH}" for c in columns)] for name in names]
    several = len(entries) > 1
    labels = [run_label(entry, i, several) for i, entry in enumerate(entries)]
    shown = html_table(["", *labels], rows, "Other metrics in the metrics files")
    return tag("details", tag("summary", f"Other metrics ({len(names)})"), shown)


def difference_table(entries: Sequence[RunEntry]) -> Markup:
    """Every run against the first, by paired bootstrap."""
    measured = [(number, entry) for number, entry in enumerate(entries) if entry.measured]
    if len(measured) < 2:
        return tag("p", "This comparison needs the embeddings of at least two runs.", class_="note")
    base = measured[0][1]
    rows = []
    for number, entry in measured[1:]:
        assert base.measured
        assert entry.measured
        label = run_label(entry, number, True)
        found = compare(base.measured, entry.measured, entry.name)
        if found.reason:
            rows.append([label, tag("td", found.reason, colspan="7", class_="left")])
        else:
            rows.append([label, *(_difference(found.differences[k]) for k in [*COMPARED, "rsum"])])
    head = ["", "i2t R@1", "R@5", "R@10", "t2i R@1", "R@5", "R@10", "rsum"]
    return html_table(head, rows, f"Difference from {base.name} in percentage points, with 95% interval and p-value")


def _difference(found: Difference) -> Markup:
    significant = found.p < 0.05
    tone = ("up" if found.value > 0 else "down") if significant else None
    interval = tag("span", f"{found.low:+.1f} to {found.high:+.1f}", class_="soft")
    value = tag("b" if significant else "span", f"{found.value:+.1f}", class_=tone)
    return tag("td", value, tag("br"), interval, tag("br"), tag("span", f"p = {found.p:.3f}", class_="soft"))


def recall_by_caption_table(entries: Sequence[RunEntry]) -> Markup:
    """Percentage of images that all, some or none of their captions retrieve."""
    rows = []
    several = len(entries) > 1
    for k in (1, 5, 10):
        for number, entry in enumerate(entries):
            if entry.measured:
                found = entry.measured.views.found(k)
                bar = tag("div", *(tag("i", class_=n, style=f"width:{v:.2f}%") for n, v in found.items()), class_="bar")
                label = [f"K = {k} ", run_label(entry, number, several)] if several else f"K = {k}"
                rows.append([label, *(f"{value:.1f}" for value in found.values()), tag("td", bar, aria_hidden="true")])
    title = "Percentage of images that all, some or none of their captions retrieve in the top K"
    return html_table(["", "all", "some", "none", ""], rows, title)


def capacity_table(entries: Sequence[RunEntry]) -> Markup:
    """Metrics of the embedding spaces, one column per run."""
    shown = [(number, entry) for number, entry in enumerate(entries) if entry.measured]
    names = list(
        dict.fromkeys(name for _, entry in shown for name in (entry.measured.capacity if entry.measured else ()))
    )
    rows = []
    for name in names:
        values = [entry.measured.capacity.get(name) for _, entry in shown if entry.measured]
        digits = 0 if name == "width" else 1 if "rank" in name else 3
        rows.append([name, *(f"{value:.{digits}f}" if value is not None else "" for value in values), _meaning(name)])
    meaning = tag("span", "meaning", class_="left")
    head = ["", *(run_label(entry, number, len(entries) > 1) for number, entry in shown), meaning]
    return html_table(head, rows, "Statistics of the unit-length embeddings")


def _meaning(name: str) -> Markup:
    meanings = {
        "width": "number of dimensions",
        "effective rank": "number of directions in use, from 1 to the width",
        "alignment": "mean squared distance between a caption and its image; lower is closer",
        "uniformity": "log of the mean Gaussian kernel between two embeddings; lower is more evenly spread",
        "modality gap": "distance between the mean image embedding and the mean caption embedding, from 0 to 2",
    }
    return tag("td", next(text for key, text in meanings.items() if name.startswith(key)), class_="left soft")
