"""The gallery: queries with their first hits, each named for what it is."""

from __future__ import annotations

from collections.abc import Sequence

from itr.evaluation.retrieval import DIRECTIONS
from itr.report.content.choose import KINDS, Hit, Query, Verdict
from itr.report.content.entry import Entry
from itr.report.content.measure import Measured
from itr.report.content.samples import Samples
from itr.report.page.markup import Content, Markup, tag

TITLES = {  # where the data tell every true match, and where they don't
    "success": ["Successes: the query's own match is first"] * 2,
    "failure": ["Failures: the first hit is wrong", "Failures: another is first"],
    "false negative": [
        "False negatives: counted as failures, but the first hit is a true match that the annotation lacks",
        "Likely false negatives: counted as failures, but the first hit looks true",
    ],
}
MARKS: dict[Verdict, str] = {
    "own": "own",
    "match": "also true",
    "likely": "looks true",
    "wrong": "wrong",
    "other": "other",
}


def gallery(entries: Sequence[Entry]) -> list[Markup]:
    """The queries of every run, both ways and of all kinds."""
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
    """A caption, its own image and the first images found."""
    own = int(measured.own_image[query.row])
    asked = samples.caption.get(int(measured.text_id[query.row]))
    hits = [_image_hit(hit, measured, samples) for hit in query.hits]
    wanted = tag("li", _image(own, measured, samples), tag("span", "its own", class_="mark"), class_="asked-for own")
    return tag(
        "article",
        tag("p", asked or f"caption {measured.text_id[query.row]}", class_="asked", dir="auto"),
        tag("p", _rank(query, "own image", len(measured.image_id)), class_="rank"),
        tag("ol", wanted, *hits, class_="hits"),
        class_="query",
    )


def _image_query(query: Query, measured: Measured, samples: Samples) -> Markup:
    """An image and the first captions found."""
    hits = [_caption_hit(hit, measured, samples) for hit in query.hits]
    pair = tag("figure", _image(query.row, measured, samples)), tag("ol", *hits, class_="texts")
    rank = tag("p", _rank(query, "first own caption", len(measured.text_id)), class_="rank")
    own = samples.captions.get(int(measured.image_id[query.row]), [])
    told = tag("p", "Its own: ", *_joined(own), class_="rank") if own and query.rank else ""
    return tag("article", rank, tag("div", *pair, class_="pair"), told, class_="query")


def _joined(captions: list[str]) -> list[Content]:
    """Captions with a sign between, each in its own direction of writing."""
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
    """The image of a row with a caption of its own as its description; its number where there is none."""
    number = int(measured.image_id[row])
    source = samples.image.get(number)
    words = " / ".join(samples.captions.get(number, [])[:1]) or f"image {number}"
    if not source:
        return tag("div", f"image {number}", class_="image", title=words)
    return tag("img", src=source, alt=words, title=words, class_="image")
