"""Targets that read tables of captions and the published layouts of data sets."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from PIL import Image

from breaking import broken, edits, json_values, odd_names, odd_texts, twisted, twists
from itr.data.inspecting.verify import verify
from itr.data.preparing.writing import Writing, write_shards
from itr.data.raw.dense import attach_dense
from itr.data.raw.entries import RawData
from itr.data.shards.tars import read_tar
from itr.data.sources.coco import Coco
from itr.data.sources.flickr30k import Flickr30K
from itr.data.sources.table import Table
from judging import Target, check, home, material

NAMES = ["0.png", "1.png", "a/2.png", "3.png"]
ROWS = [
    {"image": name, "caption": f"caption {at}", "split": ["train", "val", "test"][at % 3]}
    for at, name in enumerate(NAMES)
]
ENDINGS = [".csv", ".tsv", ".json", ".jsonl", ".parquet"]


@material
def secret() -> Path:
    """An image outside of any root, which no shard may contain."""
    path = Path(home(), "secret.png")
    Image.new("RGB", (9, 9), "red").save(path)
    return path


@material
def _image(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def lay(folder: Path, names: list[str]) -> None:
    for at, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(_image(at))


def written(rows: list[Any], ending: str) -> bytes:
    """A table with these rows."""
    if ending == ".json":
        return json.dumps(rows).encode()
    if ending == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if ending == ".parquet":
        return parquet(tuple(json.dumps(row) for row in rows))
    stream = io.StringIO()
    names = list(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row))
    writer = csv.writer(stream, delimiter="\t" if ending == ".tsv" else ",", quoting=csv.QUOTE_MINIMAL, escapechar="\\")
    writer.writerow(names)
    for row in rows:
        cells = [row.get(name, "") for name in names] if isinstance(row, dict) else [row]
        writer.writerow([cell if isinstance(cell, str) else json.dumps(cell) for cell in cells])
    return stream.getvalue().encode("utf-8", "surrogatepass")


@material
def parquet(rows: tuple[str, ...]) -> bytes:
    try:
        import pyarrow
        from pyarrow import parquet as files
    except ImportError:
        return b"PAR1"
    sink = io.BytesIO()
    try:
        files.write_table(pyarrow.Table.from_pylist([json.loads(row) for row in rows]), sink)
    except Exception:  # rows that do not fit into columns: use undamaged ones
        files.write_table(pyarrow.Table.from_pylist(ROWS), sink)
    return sink.getvalue()


def prepare(read: Callable[[], RawData], folder: Path) -> None:
    """Read a source and write its shards, which must be complete and contain no file from outside the root."""
    raw = read()
    write_shards(raw, Writing(str(folder / "out"), num_workers=1, bad_images="skip"))
    verify(str(folder / "out"), num_workers=1)
    forbidden = secret().read_bytes()
    for tar in (folder / "out").glob("*/*.tar"):
        check(all(sample.image != forbidden for sample in read_tar(tar)), "an image outside of the root was taken")


def table(example: Any, folder: Path) -> None:
    ending, changes, bytes_too = example
    lay(folder, NAMES)
    rows = twisted(ROWS, changes)
    data = written(rows if isinstance(rows, list) else [rows], ending)
    (folder / f"table{ending}").write_bytes(broken(data, bytes_too))
    prepare(lambda: Table(str(folder / f"table{ending}")).read(), folder)


def table_of_anything(example: Any, folder: Path) -> None:
    ending, data = example
    (folder / f"table{ending}").write_bytes(data)
    prepare(lambda: Table(str(folder / f"table{ending}")).read(), folder)


def names_of_images(example: Any, folder: Path) -> None:
    """Paths that leave the root, directly or through a link."""
    ending, names = example
    root = folder / "root"
    lay(root, NAMES)
    outside = os.path.relpath(secret(), root)
    rows = [{"image": name.replace("SECRET", outside), "captions": ["a", "b"]} for name in names]
    rows += [{"image": str(secret()), "captions": ["a"]}, {"image": f"a/../../{outside}", "captions": ["a"]}]
    (root / f"table{ending}").write_bytes(written([*rows, {"image": NAMES[0], "captions": ["c"]}], ending))
    prepare(lambda: Table(str(root / f"table{ending}")).read(), folder)


KARPATHY = {
    "dataset": "flickr30k",
    "images": [
        {
            "filename": name, "filepath": "", "split": ["train", "val", "test", "restval"][at], "imgid": at,
            "cocoid": at + 7,
            "sentids": [2 * at, 2 * at + 1],
            "sentences": [{"raw": f"caption {n}", "tokens": ["caption"], "imgid": at,
            "sentid": 2 * at + n} for n in (0, 1)],
        }
        for at, name in enumerate(NAMES)
    ],
}  # fmt: skip
OFFICIAL = {
    "images": [{"id": at, "file_name": name} for at, name in enumerate(NAMES)],
    "annotations": [{"id": 2 * at + n, "image_id": at, "caption": f"c {n}"} for at in range(4) for n in (0, 1)],
    "type": "captions",
    "info": {},
}


def karpathy(example: Any, folder: Path) -> None:
    coco, changes, bytes_too = example
    lay(folder, NAMES)
    name = "dataset_coco.json" if coco else "dataset_flickr30k.json"
    (folder / name).write_bytes(broken(json.dumps(twisted(KARPATHY, changes)).encode(), bytes_too))
    prepare(lambda: (Coco if coco else Flickr30K)(str(folder), layout="karpathy").read(), folder)


def official(example: Any, folder: Path) -> None:
    changes, bytes_too, split_changes, with_split = example
    lay(folder, NAMES)
    data = broken(json.dumps(twisted(OFFICIAL, changes)).encode(), bytes_too)
    (folder / "captions_train2014.json").write_bytes(data)
    if with_split:
        split = twisted(KARPATHY, split_changes)
        images = split.get("images") if isinstance(split, dict) else None
        for image in images if isinstance(images, list) else []:
            if isinstance(image, dict) and isinstance(image.get("cocoid"), int):
                image["cocoid"] -= 7
        (folder / "dataset_coco.json").write_text(json.dumps(split))
    prepare(lambda: Coco(str(folder), layout="official").read(), folder)


def lines(example: Any, folder: Path) -> None:
    caps, ids, changes, mapping = example
    lay(folder, NAMES)
    (folder / "train_caps.txt").write_bytes(broken("\n".join(caps).encode("utf-8", "surrogatepass"), changes))
    (folder / "train_ids.txt").write_bytes("\n".join(ids).encode("utf-8", "surrogatepass"))
    whole = {str(at): name for at, name in enumerate(NAMES)}
    (folder / "id_mapping.json").write_text(json.dumps(twisted(whole, mapping)))
    prepare(lambda: Flickr30K(str(folder), layout="text", splits="train").read(), folder)


def rows_files(example: Any, folder: Path) -> None:
    changes, bytes_too = example
    lay(folder, NAMES)
    rows = [{"image": name, "caption": ["one", "two"], "image_id": f"{at}"} for at, name in enumerate(NAMES)]
    (folder / "flickr30k_train.json").write_bytes(broken(json.dumps(twisted(rows, changes)).encode(), bytes_too))
    prepare(lambda: Flickr30K(str(folder), layout="rows", splits="train").read(), folder)


def dense(example: Any, folder: Path) -> None:
    ending, changes, bytes_too = example
    lay(folder, NAMES)
    (folder / "table.json").write_text(json.dumps(ROWS))
    rows = twisted([{"image": name, "dense": f"dense {name}"} for name in NAMES], changes)
    data = broken(written(rows if isinstance(rows, list) else [rows], ending), bytes_too)
    (folder / f"dense{ending}").write_bytes(data)

    def read() -> RawData:
        raw = Table(str(folder / "table.json")).read()
        attach_dense(raw, str(folder / f"dense{ending}"))
        return raw

    prepare(read, folder)


def _lines() -> st.SearchStrategy[Any]:
    captions = st.one_of(st.just([f"caption {n}" for n in range(4)]), st.lists(odd_texts(), max_size=8))
    ids = st.one_of(
        st.just(list("0123")), st.lists(st.one_of(odd_names(), st.sampled_from(list("0123٣²"))), max_size=6)
    )
    return st.tuples(captions, ids, edits(2), twists())


TARGETS = [
    Target("tables", lambda: st.tuples(st.sampled_from(ENDINGS), twists(), edits(2)), table, sound=(".csv", [], [])),
    Target(
        "tables of any bytes",
        lambda: st.tuples(
            st.sampled_from(ENDINGS),
            st.one_of(st.binary(max_size=200), json_values().map(lambda v: json.dumps(v).encode())),
        ),
        table_of_anything,
    ),
    Target(
        "paths in tables",
        lambda: st.tuples(
            st.sampled_from(ENDINGS[2:4]),
            st.lists(st.one_of(odd_names(), st.just("SECRET"), odd_names().map(lambda n: n + "/SECRET")), max_size=4),
        ),
        names_of_images,
        sound=(".json", []),
    ),
    Target("Karpathy's JSON", lambda: st.tuples(st.booleans(), twists(), edits(1)), karpathy, sound=(True, [], [])),
    Target(
        "COCO's JSON",
        lambda: st.tuples(twists(), edits(1), twists(most=1), st.booleans()),
        official,
        sound=([], [], [], True),
    ),
    Target("captions line by line", _lines, lines, sound=(["a", "b", "c", "d"], list("0123"), [], [])),
    Target("JSON rows", lambda: st.tuples(twists(), edits(1)), rows_files, sound=([], [])),
    Target(
        "dense tables",
        lambda: st.tuples(st.sampled_from(ENDINGS[:4]), twists(), edits(1)),
        dense,
        sound=(".csv", [], []),
    ),
]
