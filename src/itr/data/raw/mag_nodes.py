"""Nodes from MAGB's tables and MM-Graph's files."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itr.data.raw.files import find_file, read_json
from itr.data.tables.cells import cell_key, cell_texts
from itr.data.tables.reading import Row, read_rows
from itr.errors import UserError, shown

CATEGORIES = ("category", "second_category", "third_category", "subreddit")
KEY_COLUMNS = ("asin", "id", "image")
NODE_TEXT_COLUMNS = ("raw_text", "title", "text")


@dataclass
class GraphNode:
    """A node with its image name and text.

    Attributes:
        number: its index in the graph, and in arrays of features.
        key: name of its image without the extension.
        text: its text; may be empty.
        dense: dense captions.
        meta: label and category, if known.
    """

    number: int
    key: str
    text: str
    dense: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)


def read_magb(top: Path, stem: str, texts: str | None, dense_column: str | None) -> tuple[Path, list[GraphNode]]:
    """The folder of a MAGB data set and its nodes, sorted by number, from `Movies.csv`.

    Raises:
        UserError: the table does not exist, lacks a column, or has a duplicate id.
    """
    path = find_file(top, [f"{stem}.csv"])
    if path is None:
        raise UserError(f"found no {stem}.csv in {top} or in a folder directly below it")
    print(f"nodes: {path}")
    nodes: dict[int, GraphNode] = {}
    column = texts or ""
    for row in read_rows(path):
        column = column or ("text" if "text" in row else "caption")
        for needed in filter(None, ("id", column, dense_column)):
            if needed not in row:
                raise UserError(
                    f"{path} has no column {needed!r}; choose one of {', '.join(map(str, row))} with --texts"
                )
        node = _node(row, column, dense_column)
        if node.number in nodes:
            raise UserError(f"{path} has the id {node.number} twice; ids must be unique")
        nodes[node.number] = node
    return path.parent, [nodes[number] for number in sorted(nodes)]


def _node(row: Row, column: str, dense_column: str | None) -> GraphNode:
    try:
        id_ = int(row["id"])
    except (TypeError, ValueError):
        raise UserError(f"{row.where}: the id {shown(row['id'])} is not an integer") from None
    meta: dict[str, Any] = {name: row[name] for name in CATEGORIES if row.get(name)}
    if row.get("label"):
        meta["label"] = int(row["label"]) if str(row["label"]).isdecimal() else row["label"]
    dense = _joined(row[dense_column], row.where, dense_column) if dense_column else ""
    return GraphNode(id_, str(id_), _joined(row[column], row.where, column), [dense] if dense else [], meta)


def read_mm_graph(top: Path, name: str, titles: str | None) -> tuple[Path, list[GraphNode]]:
    """The folder of an MM-Graph data set and its nodes, sorted by number.

    Raises:
        UserError: the texts or the mapping from products to nodes is missing or malformed.
    """
    folder = top / name if (top / name).is_dir() else top
    mapping = _mapping(folder / "node_mapping.pt")
    path = Path(titles).expanduser() if titles else folder / f"{name}-raw-text.jsonl"
    if not path.is_file():
        raise UserError(f"{path} does not exist; pass a table with the columns asin and title as --titles")
    print(f"nodes: {path}, {folder / 'node_mapping.pt'}")
    texts = dict(_texts(path))
    labels = _labels(folder / "labels-w-missing.pt", mapping)
    return folder, [
        GraphNode(number, key, texts.get(key, ""), meta={"asin": key, **labels.get(number, {})})
        for number, key in sorted(mapping.items())
    ]


def _mapping(path: Path) -> dict[int, str]:
    """Product of each node; the file may map in either direction, or list the products."""
    raw = load_tensors(path, "which maps nodes to products")
    try:
        pairs = list(raw.items() if isinstance(raw, dict) else enumerate(raw))
        by_node = all(isinstance(first, int) for first, _ in pairs)
        found = {int(node): str(key) for node, key in (pairs if by_node else ((node, key) for key, node in pairs))}
    except (TypeError, ValueError, AttributeError):
        raise UserError(f"{path} does not map nodes to products") from None
    if len(found) < len(pairs) or len(set(found.values())) < len(found):
        raise UserError(f"{path} has a node or a product twice")
    return found


def _labels(path: Path, mapping: dict[int, str]) -> dict[int, dict[str, int]]:
    if not path.is_file():
        return {}
    values = load_tensors(path, "")
    return {number: {"label": int(values[number])} for number in mapping if number < len(values)}


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    raw = read_json(path) if path.suffix.lower() == ".json" else None
    if isinstance(raw, dict):
        yield from ((str(key), _joined(value, str(path), shown(key))) for key, value in raw.items())
        return
    for row in read_rows(path):
        key = next(filter(None, (cell_key(row.get(column), row.where, column) for column in KEY_COLUMNS)), "")
        column = next((column for column in NODE_TEXT_COLUMNS if column in row), None)
        if not key or column is None:
            raise UserError(
                f"{row.where}: a row needs a key column ({', '.join(KEY_COLUMNS)}) and a text column "
                f"({', '.join(NODE_TEXT_COLUMNS)}); it has {', '.join(row)}"
            )
        yield key, _joined(row[column], row.where, column)


def _joined(value: Any, where: str, column: str) -> str:
    return " ".join(cell_texts(value, where, column))


def load_tensors(path: Path, what: str) -> Any:
    """Load a `torch.save` file of tensors and plain values.

    Args:
        path: the file.
        what: its purpose, for the message if it does not exist.

    Raises:
        UserError: it does not exist, or contains other objects.
    """
    import torch  # here, so that `itr prepare --help` does not wait for it

    if not path.is_file():
        raise UserError(f"{path} does not exist, {what}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0][:150]
        raise UserError(
            f"could not read {path} as tensors and plain values ({reason}); save it again with only those"
        ) from None
