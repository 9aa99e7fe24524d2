"""Nodes of MAGB's tables and of MM-Graph's files."""

from __future__ import annotations

import csv
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itr.data.raw.files import find_file, read_json, squeeze
from itr.data.raw.tables import read_rows
from itr.errors import UserError

LONGEST_CELL = 16_000_000  # characters; a product's description may pass the csv module's 131,072
CATEGORIES = ("category", "second_category", "third_category", "subreddit")
KEYS = ("asin", "id", "image")
TEXTS = ("raw_text", "title", "text")


@dataclass
class Node:
    """A node with its image's name and its text.

    Attributes:
        number: its place in the graph, and in arrays of features.
        key: name of its image without the ending.
        text: its text; empty where there is none.
        dense: dense captions.
        meta: label and category, where known.
    """

    number: int
    key: str
    text: str
    dense: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)


def read_magb(top: Path, stem: str, texts: str | None, dense_column: str | None) -> tuple[Path, list[Node]]:
    """The folder of a set of MAGB and its nodes by number, from `Movies.csv`.

    Raises:
        UserError: the table is not there, lacks a column, or has an id twice.
    """
    path = find_file(top, [f"{stem}.csv"])
    if path is None:
        raise UserError(f"{top} has no {stem}.csv; looked there and one folder below")
    print(f"nodes: {path}")
    nodes: dict[int, Node] = {}
    column = texts or ""
    for number, row in enumerate(_rows(path)):
        column = column or ("text" if "text" in row else "caption")
        for needed in filter(None, ("id", column, dense_column)):
            if needed not in row:
                raise UserError(f"{path} has no column {needed!r}; it has {', '.join(map(str, row))}; see --texts")
        node = _node(row, column, dense_column, path, number)
        if node.number in nodes:
            raise UserError(f"{path} has the id {node.number} twice; a node must stand once")
        nodes[node.number] = node
    return path.parent, [nodes[number] for number in sorted(nodes)]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        yield from read_rows(path)
    finally:
        csv.field_size_limit(before)


def _node(row: dict[str, Any], column: str, dense_column: str | None, path: Path, number: int) -> Node:
    try:
        id_ = int(row["id"])
    except (TypeError, ValueError):
        raise UserError(f"{path}, node {number}: the id {row['id']!r} is no number") from None
    meta: dict[str, Any] = {name: row[name] for name in CATEGORIES if row.get(name)}
    if row.get("label"):
        meta["label"] = int(row["label"]) if str(row["label"]).isdecimal() else row["label"]
    dense = squeeze(row[dense_column] or "") if dense_column else ""
    return Node(id_, str(id_), squeeze(row[column] or ""), [dense] if dense else [], meta)


def mm_graph_nodes(top: Path, name: str, titles: str | None) -> tuple[Path, list[Node]]:
    """The folder of a set of MM-Graph and its nodes by number.

    Raises:
        UserError: the mapping from products to nodes or the texts are not there, or no such thing.
    """
    folder = top / name if (top / name).is_dir() else top
    mapping = _mapping(folder / "node_mapping.pt")
    path = Path(titles).expanduser() if titles else folder / f"{name}-raw-text.jsonl"
    if not path.is_file():
        raise UserError(f"there is no {path}; give a table with asin and title as --titles")
    print(f"nodes: {path}, {folder / 'node_mapping.pt'}")
    texts = dict(_texts(path))
    labels = _labels(folder / "labels-w-missing.pt", mapping)
    return folder, [
        Node(number, key, texts.get(key, ""), meta={"asin": key, **labels.get(number, {})})
        for number, key in sorted(mapping.items())
    ]


def _mapping(path: Path) -> dict[int, str]:
    """Product of each node; the file may map either way, or list the products."""
    raw = load_plain(path, "which says what product a node is")
    try:
        pairs = list(raw.items() if isinstance(raw, dict) else enumerate(raw))
        by_node = all(isinstance(first, int) for first, _ in pairs)
        found = {int(node): str(key) for node, key in (pairs if by_node else ((node, key) for key, node in pairs))}
    except (TypeError, ValueError, AttributeError):
        raise UserError(f"{path} does not map nodes to products") from None
    if len(found) < len(pairs) or len(set(found.values())) < len(found):
        raise UserError(f"{path} names a node or a product twice")
    return found


def _labels(path: Path, mapping: dict[int, str]) -> dict[int, dict[str, int]]:
    if not path.is_file():
        return {}
    values = load_plain(path, "")
    return {number: {"label": int(values[number])} for number in mapping if number < len(values)}


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    raw = read_json(path) if path.suffix.lower() == ".json" else None
    if isinstance(raw, dict):
        yield from ((str(key), _joined(value)) for key, value in raw.items())
        return
    for row in read_rows(path):
        if not isinstance(row, dict):
            raise UserError(f"{path} is no table of rows with names")
        key = next((row[column] for column in KEYS if row.get(column) not in (None, "")), None)
        column = next((column for column in TEXTS if column in row), None)
        if key is None or column is None:
            raise UserError(
                f"{path} needs a column {', '.join(KEYS)} and one {', '.join(TEXTS)}; a row has {', '.join(row)}"
            )
        yield str(key), _joined(row[column])


def _joined(value: Any) -> str:
    texts = value if isinstance(value, list) else [value]
    return squeeze(" ".join(text for text in texts if isinstance(text, str)))


def load_plain(path: Path, what: str) -> Any:
    """What `torch.save` wrote, if it is tensors and plain values.

    Raises:
        UserError: it is not there, or holds more than that.
    """
    import torch  # here, since the help of `itr prepare` should not wait for it

    if not path.is_file():
        raise UserError(f"there is no {path}, {what}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0][:150]
        raise UserError(f"{path} can't be read as tensors and plain values ({reason}); save it as such") from None
