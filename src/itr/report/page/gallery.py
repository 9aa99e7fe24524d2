"""The gallery: queries with their top hits, each marked as correct or wrong."""

from __future__ import annotations

from collections.abc import Sequence

from itr.evaluation.retrieval import DIRECTIONS
from itr.report.content.choose import KINDS, Hit, Query, Verdict
from itr.report.content.entry import RunEntry
from itr.report.content.measure import Measured
from itr.report.content.samples import Samples
from itr.report.page.markup import Content, Markup, tag

TITLES = {  # if the data list every true match, and if they do not
    "success": ["Successes: an annotated match is ranked first"] * 2,
    "failure": ["Failures: the first hit is wrong", "Failures: the first hit is not annotated as a match"],
    "false negative": [
        "False negatives: counted as failures, but the first hit is a true match that is not annotated",
        "Likely false negatives: counted as failures, but the first hit is probably a true match",
    ],
}
MARKS: dict[Verdict, str] = {
    "own": "annotated",
    "match": "also correct",
    "likely": "likely match",
    "wrong": "wrong",
    "other": "not annotated",
}


def query_gallery(entries: Sequence[RunEntry]) -> list[Markup]:
    """The queries of every run, of each kind and in both directions."""
    parts: list[Markup] = []
    for entry in entries:
        if entry.measured is None or not entry.measured.queries:
            continue
        shown = _of_run(entry.measured, entry.samples or Samples())
        if len(entries) == 1:
            parts += shown
        else:
            summary = tag("summary", f"{entry.name}: {len(entry.measured.queries)} queries")
            parts.append(tag("details", summary, *shown, open="" if entry is entries[0] else None))
    return parts


def _of_run(measured: Measured, samples: Samples) -> list[Markup]:
    parts: list[Markup] = []
    for way, title in (("t2i", DIRECTIONS["t2i"]), ("i2t", DIRECTIONS["i2t"])):
        parts.append(tag("h3", title.capitalize()))
        for kind in KINDS:
            queries = [query for query in measured.queries if query.way == way and query.kind == kind]
            cards = [(_text_query if way == "t2i" else _image_query)(query, measured, samples) for query in queries]
            shown = tag("div", *cards, class_="queries") if cards else tag("p", "None.", class_="note")
            parts += [tag("h4", TITLES[kind][0 if measured.known else 1]), shown]
    return parts


def _text_query(query: Query, measured: Measured, samples: Samples) -> Markup:
    """A caption, its annotated image and the top retrieved images."""
    own = int(measured.own_image[query.row])
    caption = samples.caption.get(int(measured.text_id[query.row]))
    hits = [_image_hit(hit, measured, samples) for hit in query.hits]
    target = tag("li", _image(own, measured, samples), tag("span", "target", class_="mark"), class_="asked-for own")
    return tag(
        "article",
        tag("p", caption or f"caption {measured.text_id[query.row]}", class_="asked", dir="auto"),
        tag("p", _rank(query, "Annotated image", len(measured.image_id)), class_="rank"),
        tag("ol", target, *hits, class_="hits"),
        class_="query",
    )


def _image_query(query: Query, measured: Measured, samples: Samples) -> Markup:
    """An image and the top retrieved captions."""
    hits = [_caption_hit(hit, measured, samples) for hit in query.hits]
    pair = tag("figure", _image(query.row, measured, samples)), tag("ol", *hits, class_="texts")
    rank = tag("p", _rank(query, "Best annotated caption", len(measured.text_id)), class_="rank")
    own = samples.captions.get(int(measured.image_id[query.row]), [])
    targets = tag("p", "Annotated captions: ", *_joined(own), class_="rank") if own and query.rank else ""
    return tag("article", rank, tag("div", *pair, class_="pair"), targets, class_="query")


def _joined(captions: list[str]) -> list[Content]:
    """Captions separated by a dot, each in its own writing direction."""
    parts: list[Content] = []
    for number, words in enumerate(captions):
        parts += [" \N{MIDDLE DOT} " if number else "", tag("bdi", words)]
    return parts


def _rank(query: Query, what: str, number: int) -> str:
    return f"{what} at rank {query.rank + 1:,} of {number:,}"


def _image_hit(hit: Hit, measured: Measured, samples: Samples) -> Markup:
    mark = tag("span", MARKS[hit.verdict], class_="mark")
    return tag(
        "li",
        _image(hit.row, measured, samples),
        mark,
        tag("span", f"{hit.score:.2f}", class_="score"),
        class_=hit.verdict,
    )


def _caption_hit(hit: Hit, measured: Measured, samples: Samples) -> Markup:
    number = int(measured.text_id[hit.row])
    words = tag("span", samples.caption.get(number, f"caption {number}"), dir="auto")
    mark = tag("span", MARKS[hit.verdict], class_="mark")
    score = tag("span", mark, f" {hit.score:.2f}", class_="score")
    return tag("li", words, " ", score, class_=hit.verdict)


def _image(row: int, measured: Measured, samples: Samples) -> Content:
    """The image of a row with its first caption as alt text; a box with the image's id if it could not be read."""
    number = int(measured.image_id[row])
    source = samples.image.get(number)
    words = " / ".join(samples.captions.get(number, [])[:1]) or f"image {number}"
    if not source:
        return tag("div", f"image {number}", class_="image", title=words)
    return tag("img", src=source, alt=words, title=words, class_="image")
