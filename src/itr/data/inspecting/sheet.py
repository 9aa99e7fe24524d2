"""A page of images with their captions, as one self-contained HTML file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

PAGE = """<!doctype html>
<html><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fff }}
pre {{ overflow-x: auto }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); gap: 1.5em }}
figure {{ margin: 0 }}
img {{ max-width: 100%; max-height: 320px; image-orientation: none }}
small {{ color: #666; overflow-wrap: anywhere }}
ul {{ padding-inline-start: 1.2em; margin: .3em 0 }}
.dense {{ color: #555; font-style: italic }}
</style></head><body>
<h1>{title}</h1>
<pre>{summary}</pre>
<main>
{cards}
</main></body></html>
"""
BROWSER_FORMATS = {b"\xff\xd8": "jpeg", b"\x89P": "png", b"GI": "gif", b"RI": "webp", b"BM": "bmp"}


@dataclass
class Card:
    """One image on the page.

    Attributes:
        image: its bytes, in a format that browsers support; empty if there is no image.
        heading: the line below the image.
        captions: its captions.
        dense: its dense captions.
    """

    image: bytes
    heading: str
    captions: Sequence[str]
    dense: Sequence[str] = ()


def write_sheet(path: Path, title: str, cards: Sequence[Card], summary: str) -> None:
    """Write the page; text is escaped, and set right to left if its script is."""
    figures = "\n".join(map(_figure, cards))
    page = PAGE.format(title=escape(title), summary=escape(summary), cards=figures)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8", errors="replace")


def _figure(card: Card) -> str:
    lines = [f'<li dir="auto">{escape(text)}</li>' for text in card.captions]
    lines += [f'<li dir="auto" class="dense">{escape(text)}</li>' for text in card.dense]
    image = "<p>this image cannot be shown</p>"
    if card.image:
        kind = BROWSER_FORMATS.get(card.image[:2], "jpeg")
        image = f'<img alt="" src="data:image/{kind};base64,{base64.b64encode(card.image).decode()}">'
    return (
        f"<figure>{image}<figcaption><small>{escape(card.heading)}</small>"
        f"<ul>{''.join(lines)}</ul></figcaption></figure>"
    )
