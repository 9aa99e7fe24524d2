"""Build HTML safely: all text is escaped unless this module produced it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


class Markup(str):
    """A string that is already markup."""

    __slots__ = ()


Content = str | Iterable["Content"]

VOID = ("img", "meta", "br")


def text(content: Content) -> Markup:
    """Convert content to markup: plain strings are escaped, parts joined."""
    if isinstance(content, Markup):
        return content
    if isinstance(content, str):
        return Markup(escape(content))
    return Markup("".join(text(part) for part in content))


def tag(name: str, /, *content: Content, **attributes: str | None) -> Markup:
    """An element; `class_` means `class`, `_` in names means `-`, and attributes that are None are omitted."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    opening = "".join(f' {key}="{escape(value)}"' for key, value in given.items())
    if name in VOID:
        return Markup(f"<{name}{opening}>")
    return Markup(f"<{name}{opening}>{text(content)}</{name}>")


def html_table(
    head: Sequence[Content], rows: Iterable[Sequence[Content]], caption: str, groups: Content = ""
) -> Markup:
    """A table whose first column contains the row headers.

    Args:
        head: column headers.
        rows: cells; each may be a complete `td` element.
        caption: title of the table.
        groups: a row of headers above the column headers.
    """
    names = tag("tr", *(tag("th", name, scope="col") for name in head))
    body = [tag("tr", tag("th", row[0], scope="row"), *(_cell(cell) for cell in row[1:])) for row in rows]
    whole = tag("table", tag("caption", caption), tag("thead", groups, names), tag("tbody", *body))
    return tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _cell(content: Content) -> Markup:
    made = text(content)
    return made if made.startswith("<td") else tag("td", made)


def swatch(run: int | None, dash: str = "") -> Markup:
    """A short line in the color of a run, or in the text color if `run` is None."""
    pattern = f' stroke-dasharray="{dash}"' if dash else ""
    color = "plain" if run is None else f"s{run % 6}"
    line = f'<line x1="1" y1="5" x2="25" y2="5"{pattern}/>'
    return Markup(f'<svg class="swatch {color}" width="26" height="10" aria-hidden="true">{line}</svg>')
