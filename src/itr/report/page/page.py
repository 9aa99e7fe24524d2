"""The page as a whole: its parts in order, and what each of them means."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from importlib.resources import files

from itr.report.content.entry import Entry, plural
from itr.report.content.measure import Measured
from itr.report.page import curves, results
from itr.report.page.facts import facts
from itr.report.page.gallery import gallery
from itr.report.page.markup import Markup, tag, text

# What can be fetched is nothing: even a page with a fault in it sends no request.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

BOOTSTRAP = (
    "Paired bootstrap: images are drawn anew 1,000 times with all their captions, the same ones for both runs. "
    "Bold where p is below 0.05. It speaks for these two checkpoints on this kind of data; how much a second training "
    "with another seed would differ is not in it. Of many such figures, one in twenty looks sure by chance."
)
VIEWS = (
    "One image has several captions, each a view of it. Does its one embedding serve them all? An image counts for "
    "its worst caption only if every caption finds it."
)
CAPACITY = (
    "Effective rank: Roy and Vetterli 2007. Alignment and uniformity: Wang and Isola, arXiv 2005.10242. "
    "Modality gap: Liang et al., arXiv 2203.02053. Uniformity is taken over at most 5,000 embeddings drawn at random."
)
RANKS = (
    "Ranks count from 1; a wrong candidate that ties with the right one stands before it. For an image with several "
    "captions the best of them counts."
)


def page(entries: Sequence[Entry], split: str) -> str:
    """The page of one run or of several side by side, the first being the one that others are compared with."""
    several = len(entries) > 1
    title = f"{plural(len(entries), 'run')} side by side" if several else entries[0].name
    sections = [section for section in _sections(entries, split) if section[2]]
    links = tag("ul", *(tag("li", tag("a", name, href=f"#{key}")) for key, name, _ in sections))
    made = f"Made by itr report on {datetime.date.today().isoformat()}, split {split}"
    header = tag("header", tag("h1", title), tag("p", made, class_="soft"), tag("nav", links, aria_label="Sections"))
    parts = [tag("section", tag("h2", name), content, id=key) for key, name, content in sections]
    body = tag("body", header, tag("main", _tiles(entries), _notes(entries), *parts))
    return "<!DOCTYPE html>\n" + tag("html", _head(f"Image-text retrieval: {title}"), body, lang="en") + "\n"


def _head(title: str) -> Markup:
    style = (files("itr.report") / "style.css").read_text(encoding="utf-8")
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Markup(style)),
    )


def _sections(entries: Sequence[Entry], split: str) -> list[tuple[str, str, Markup]]:
    """Key, title and content of each part; empty content where there is nothing to tell."""
    parts: list[tuple[str, str, list[Markup]]] = [
        ("run", "What was run", [facts(entries), *map(_config, entries), *map(_about, entries)]),
        ("recall", "Recall", [*results.recalls(entries, split), _paper(entries), results.other_figures(entries)]),
    ]
    if len(entries) > 1:
        parts.append(("difference", "Differences", [results.differences(entries), _note(BOOTSTRAP)]))
    if any(entry.measured for entry in entries):
        beside = tag("div", results.views(entries), curves.views(entries), class_="beside")
        views = [_note(VIEWS), _note(_captions(entries)), beside]
        parts += [
            ("ranks", "Ranks", [_note(RANKS), curves.ranking(entries)]),
            ("views", "Captions as views", views),
            ("capacity", "Use of the embedding space", [results.capacity(entries), _note(CAPACITY)]),
        ]
    if any(entry.run.history for entry in entries):
        parts.append(("training", "Training", [curves.training(entries)]))
    if shown := gallery(entries):
        parts.append(("gallery", "Gallery", [*_rules(entries), *shown]))
    return [(key, name, text(content)) for key, name, content in parts]


def _note(words: str) -> Markup:
    return tag("p", words, class_="note")


def _tiles(entries: Sequence[Entry]) -> Markup:
    """The figures that people look for first, of a single run."""
    found = entries[0].measured
    if len(entries) > 1 or found is None:
        return Markup()
    names = {"rsum": "rsum", "i2t_r1": "image to text R@1", "t2i_r1": "text to image R@1"}
    shown = [(f"{found.figures[key]:.1f}", name) for key, name in names.items()]
    shown += [(f"{len(found.image_id):,}", "images"), (f"{len(found.text_id):,}", "captions")]
    return tag("ul", *(tag("li", tag("b", value), name) for value, name in shown), class_="tiles")


def _notes(entries: Sequence[Entry]) -> Markup:
    """What is missing."""
    several = len(entries) > 1
    notes = [f"{entry.name}: {note}" if several else note for entry in entries for note in entry.run.notes]
    if not notes:
        return Markup()
    return tag("div", tag("b", "Not on this page"), tag("ul", *(tag("li", note) for note in notes)), class_="notes")


def _config(entry: Entry) -> Markup:
    if not entry.run.config_text:
        return Markup()
    summary = tag("summary", f"The complete config of {entry.name}")
    return tag("details", summary, tag("pre", entry.run.config_text), class_="config")


def _about(entry: Entry) -> Markup:
    """What the metrics files tell besides figures."""
    told = {file.name: file.about for file in entry.run.metrics if file.about}
    if not told:
        return Markup()
    summary = tag("summary", f"What the metrics files of {entry.name} tell of themselves")
    words = json.dumps(told, indent=1, ensure_ascii=False)
    return tag("details", summary, tag("pre", words), class_="config")


def _paper(entries: Sequence[Entry]) -> Markup:
    """What to keep in mind when a run is read beside a paper."""
    papers = [entry.published for entry in entries if entry.published]
    if not papers:
        return Markup()
    measured = {len(entry.measured.image_id) for entry in entries if entry.measured}
    words = "The paper's figures are those of the config's name; its authors choose the best epoch on test, we on val."
    if measured and measured != {papers[0].images}:
        sizes = " and ".join(f"{size:,}" for size in sorted(measured))
        words += f" They are of {papers[0].images:,} images, and this page is of {sizes}: not comparable."
    return _note(words)


def _captions(entries: Sequence[Entry]) -> str:
    numbers = next(entry.measured.views.number for entry in entries if entry.measured)
    low, high = int(numbers.min()), int(numbers.max())
    if low == high:
        return f"Every image has {plural(low, 'caption')}."
    return f"Images have {low} to {high} captions, {numbers.double().mean().item():.1f} on average."


def _rules(entries: Sequence[Entry]) -> list[Markup]:
    """How the gallery was chosen, and what its marks mean."""
    found = next(entry.measured for entry in entries if entry.measured)
    words = "Queries are drawn at random (seed 0), not picked. Scores are cosines. "
    if found.known:
        words += "The data tell every true match: a hit marked 'also true' is one that the annotation lacks."
    else:
        words += GUESS.format(found.threshold)
    lines = [tag("li", f"{entry.name}: {_missed(entry)}") for entry in entries if entry.measured]
    return [_note(words), tag("ul", *lines)]


GUESS = (
    "These data do not tell which unannotated pairs are true. A hit is marked 'looks true' if the caption resembles "
    "one of the image's own captions more than 999 in 1,000 random captions resemble those of another image "
    "(cosine {:.3f} or more between embeddings of texts). That is the model's own view, hence a hint: on made-up data "
    "whose truth is known it is right in about four of five cases, and it misses most. False negatives with the "
    "strongest evidence are shown first."
)


def _missed(entry: Entry) -> str:
    """How many failures are none."""
    assert entry.measured
    found = entry.measured
    shares = f"{found.missed['t2i']:.1f} % of the captions that fail and {found.missed['i2t']:.1f} % of the images"
    if not found.known:
        return f"for {shares} the first hit looks true"
    right = f"{_forgiving(found, 't2i'):.1f} from text to image and {_forgiving(found, 'i2t'):.1f} the other way"
    return f"for {shares} the first hit is true all the same; were these counted as found, R@1 would be {right}"


def _forgiving(found: Measured, way: str) -> float:
    """R@1 in percent with the false negatives counted as found."""
    right = found.figures[f"{way}_r1"]
    return right + found.missed[way] * (100 - right) / 100
