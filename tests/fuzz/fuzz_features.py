"""Targets that read features, dense captions, embeddings and third-party pickles."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from breaking import broken, edits, twisted, twists
from itr.data.features.headers import FORMAT
from itr.data.features.imported import FeatureDictionary, FeatureTarget, open_vectors
from itr.data.features.stored import FeatureFile, TeacherFeatures
from itr.data.loading.dense_texts import DenseTexts
from itr.data.shards.schema import Sample
from itr.embedding.files import load_embeddings
from itr.evaluation.retrieval import evaluate
from judging import Target, check, material

IDENTITY = "0" * 32
HEADER = {
    "teacher": "a/b", "modality": "image", "width": 4, "rows": 6, "data": IDENTITY, "settings": {"max_pixels": 9},
    "weights": "", "dtype": "float16", "format": FORMAT,
}  # fmt: skip
ARRAYS = {
    "image": np.eye(3, 4, dtype=np.float32), "text": np.eye(5, 4, dtype=np.float32) + 1, "image_id": np.arange(3),
    "caption_id": np.arange(5), "caption_image_id": np.array([0, 1, 2, 2, 0]),
}  # fmt: skip


def saved(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@material
def rows() -> bytes:
    return saved(np.arange(24, dtype=np.float16).reshape(6, 4))


@material
def ids() -> bytes:
    return saved(np.arange(0, 12, 2))


def feature_file(example: Any, folder: Path) -> None:
    head, head_bytes, of_rows, of_ids, wanted = example
    (folder / "train").mkdir()
    text = json.dumps(twisted(HEADER, head)).encode("utf-8", "surrogatepass")
    for name, data, changes in (
        ("image.json", text, head_bytes),
        ("image.npy", rows(), of_rows),
        ("image_ids.npy", ids(), of_ids),
    ):
        (folder / "train" / name).write_bytes(broken(data, changes))
    file = FeatureFile.open(folder, "train", "image", IDENTITY, "shards")
    found = file.rows(wanted)
    check(
        found.shape == (len(wanted), 4) and found.dtype == torch.float16, f"rows of {found.dtype} {list(found.shape)}"
    )
    sample = Sample("here", "0", b"", 2, ["a"], [0], {})
    TeacherFeatures(file).read([sample], [])


def array_file(example: Any, folder: Path) -> None:
    """Arrays of other types and shapes, with headers that match or do not."""
    array, as_ids = example
    (folder / "train").mkdir()
    header = HEADER | ({"rows": len(array), "width": array.shape[1]} if array.ndim == 2 else {})
    (folder / "train" / "image.json").write_text(json.dumps(header))
    (folder / "train" / "image.npy").write_bytes(saved(array))
    (folder / "train" / "image_ids.npy").write_bytes(saved(as_ids))
    FeatureFile.open(folder, "train", "image", IDENTITY, "shards").rows([0, 2])


def dense_texts(example: Any, folder: Path) -> None:
    head, lines, changes, wanted = example
    (folder / "train").mkdir()
    whole = [{"image_id": at, "text": f"a dense caption {at}"} for at in range(4)]
    data = "".join(json.dumps(line) + "\n" for line in twisted_list(whole, lines)).encode("utf-8", "surrogatepass")
    (folder / "train" / "dense.jsonl").write_bytes(broken(data, changes))
    header = {"format": "itr-dense/1", "rows": 4, "data": IDENTITY, "model": "m", "settings": {}}
    (folder / "train" / "dense.json").write_text(json.dumps(twisted(header, head)))
    found = DenseTexts.open(folder, "train", IDENTITY)
    for image_id in wanted:
        text = found.text(image_id) if found else None
        check(text is None or isinstance(text, str), f"a dense caption is {text!r}")


def twisted_list(value: list[Any], changes: Any) -> list[Any]:
    found = twisted(value, changes)
    return found if isinstance(found, list) else [found]


def embeddings(example: Any, folder: Path) -> None:
    kind, replaced, changes = example
    arrays = ARRAYS | replaced
    path = folder / f"embeddings.{kind}"
    if kind == "npz":
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    else:
        from safetensors.numpy import save_file

        save_file(
            {name: np.ascontiguousarray(a) for name, a in arrays.items() if a is not None and a.dtype.kind in "fiu"},
            path,
        )
    path.write_bytes(broken(path.read_bytes(), changes))
    evaluate(load_embeddings(path), None, torch.device("cpu"))


class Hostile:
    """Runs a program when it is unpickled."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.folder}/ran",)


def not_run(folder: Path) -> None:
    check(not (folder / "ran").exists(), "code of a file was run")


def official_pickle(example: Any, folder: Path) -> None:
    kind, protocol, changes, hostile = example
    vectors: dict[Any, Any] = {at: np.arange(4, dtype=kind)[None] for at in range(3)}
    if hostile:
        vectors[3] = Hostile(str(folder))
    data = io.BytesIO()
    np.lib.format.write_array_header_1_0(data, {"descr": "|O", "fortran_order": False, "shape": ()})
    pickle.dump(np.array(vectors, dtype=object), data, protocol)
    (folder / "train_unicom.npy").write_bytes(broken(data.getvalue(), changes))
    try:
        found = FeatureDictionary(folder / "train_unicom.npy", trust_pickle=True)
        check(not hostile or bool(changes), "a hostile pickle was read")
        keys = found.keys([FeatureTarget(at, f"{at}.jpg", at, None) for at in range(3)])
        check(found.rows(keys).shape == (3, found.width), "vectors of another shape")
    finally:
        not_run(folder)


def pickle_of_anything(example: Any, folder: Path) -> None:
    opcodes, changes = example
    head = saved(np.array({}, dtype=object), allow_pickle=True)[:128]
    (folder / "x.npy").write_bytes(head + broken(b"\x80\x04" + b"".join(opcodes) + b".", changes))
    try:
        FeatureDictionary(folder / "x.npy", trust_pickle=True)
    finally:
        not_run(folder)


def vectors_by_node(example: Any, folder: Path) -> None:
    kind, array, changes = example
    path = folder / f"features.{kind}"
    if kind == "pt" and array.dtype.kind in "fiu":
        torch.save(torch.from_numpy(np.asarray(array, dtype=np.float32)), path)
    else:
        path.write_bytes(saved(array))
    path.write_bytes(broken(path.read_bytes(), changes))
    found = open_vectors(path, "image", trust_pickle=True)
    items = [FeatureTarget(at, f"{at}.jpg", at, at) for at in range(3)]
    check(found.rows(found.keys(items)).shape == (3, found.width), "rows of another shape")


def arrays(dimensions: int = 3) -> st.SearchStrategy[np.ndarray]:
    """Small arrays of any plain dtype and shape, including NaN."""
    kinds = st.sampled_from(["f2", "f4", "f8", "i1", "i8", "u1", "u8", "?", "c8", ">f4", "S3", "U2", "M8[s]"])
    fill = st.sampled_from([0, 1, -1, float("nan"), float("inf"), 2**62, 7])

    def made(kind: str, shape: list[int], value: float) -> np.ndarray:
        array = np.arange(int(np.prod(shape)) % 1000).astype(np.float64)
        with np.errstate(all="ignore"):
            whole = np.resize(array if len(array) else [0.0], shape)
            whole = np.where(whole == 1, value, whole)
            whole = np.nan_to_num(whole, posinf=9, neginf=9) if kind[-1] not in "248" or kind[0] in "iuM" else whole
            return np.asarray(whole.astype(np.int64) if kind[0] == "M" else whole).astype(kind)

    return st.builds(made, kinds, st.lists(st.integers(0, 5), max_size=dimensions), fill)


def _opcodes() -> st.SearchStrategy[Any]:
    names = [b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"cos\nsystem\n"]
    names += [b"cnumpy._core.multiarray\nscalar\n", b"cnumpy._core.numeric\n_frombuffer\n", b"cbuiltins\neval\n"]
    plain = [
        b"(",
        b")",
        b"]",
        b"}",
        b"N",
        b"K\x01",
        b"K\x05",
        b"R",
        b"b",
        b"t",
        b"\x85",
        b"\x86",
        b"\x87",
        b"0",
        b"s",
        b"a",
        b"u",
    ]
    plain += [
        b"\x81",
        b"\x92",
        b"\x94",
        b"h\x00",
        b"\x8c\x02f4",
        b"\x8c\x01O",
        b"\x8c\x01<",
        b"C\x04abcd",
        b"\x88",
        b"\x89",
        b"2",
    ]
    plain += [
        b"\x8a\x09" + b"\xff" * 8 + b"\x7f",
        b"G\x7f\xf8" + bytes(6),
        b"\x8d" + b"\xff" * 7 + b"\x0f",
        b"1",
        b"e",
        b"\x8f",
    ]
    return st.lists(st.sampled_from(names + plain), max_size=30)


TARGETS = [
    Target(
        "feature files",
        lambda: st.tuples(
            twists(most=2),
            edits(1),
            edits(2),
            edits(2),
            st.lists(st.sampled_from([0, 2, 4, 10, 3, -1, 2**62]), max_size=4),
        ),
        feature_file,
        sound=([], [], [], [], [0, 10]),
    ),
    Target("features of any type", lambda: st.tuples(arrays(), arrays(2)), array_file),
    Target(
        "dense.jsonl",
        lambda: st.tuples(twists(most=1), twists(), edits(2), st.lists(st.integers(-1, 6), max_size=4)),
        dense_texts,
        sound=([], [], [], [1]),
    ),
    Target(
        "embeddings",
        lambda: st.tuples(
            st.sampled_from(["npz", "safetensors"]),
            st.dictionaries(
                st.sampled_from([*ARRAYS, "image_unimodal", "text_unimodal"]),
                st.one_of(st.none(), arrays()),
                max_size=2,
            ),
            edits(2),
        ),
        embeddings,
        sound=("npz", {}, []),
    ),
    Target(
        "pickled dictionaries",
        lambda: st.tuples(
            st.sampled_from(["f2", "f4", "f8", "i8", ">f4", "O"]), st.integers(0, 5), edits(2), st.booleans()
        ),
        official_pickle,
        sound=("f4", 4, [], False),
    ),
    Target("pickles of any opcodes", lambda: st.tuples(_opcodes(), edits(1)), pickle_of_anything),
    Target("vectors by node", lambda: st.tuples(st.sampled_from(["pt", "npy"]), arrays(), edits(2)), vectors_by_node),
]
