"""Writing dense captions by several processes that may be killed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from itr.data.loading.dense_texts import FORMAT
from itr.files.parts import PartFile
from itr.files.passes import Pass
from itr.files.writing import whole_file


class DenseWriter(Pass):
    """A pass that writes the dense captions of one split.

    Each process appends a line per chunk to its own file; an incomplete line is ignored. At the end the captions are
    sorted by image.

    Args:
        folder: the folder of the split's shards.
        facts: `model`, `settings` and `data`.
        num_chunks: number of chunks.
        process: number of this process.
        overwrite: remove earlier dense captions.
    """

    def __init__(
        self, folder: Path, facts: Mapping[str, Any], num_chunks: int, process: int = 0, overwrite: bool = False
    ) -> None:
        self.folder, self.part = folder, folder / f"dense.{process}.part"
        header, begun, results = folder / "dense.json", folder / "dense.json.begun", [folder / "dense.jsonl"]
        super().__init__(header, begun, results, {"format": FORMAT, **facts}, num_chunks, overwrite)

    def write(self, chunk: int, texts: Mapping[int, str]) -> None:
        """Write the dense captions of a chunk, by image_id."""
        line = json.dumps([chunk, list(texts.items())], ensure_ascii=False)
        self._file.append_line(line.encode("utf-8", "replace"))

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("dense.*.part"))

    def _begin(self) -> None:
        pass  # each process creates its own part

    def _open(self) -> None:
        self._file = PartFile(self.part)

    def _read_done(self) -> np.ndarray:
        done = np.zeros(self.num_chunks, dtype=bool)
        done[[chunk for chunk, _ in self._lines()]] = True
        return done

    def _make_results(self) -> dict[str, Any]:
        found = dict(self._lines())
        texts: dict[int, str] = {}  # several samples may have one image: the first text is kept
        for chunk in sorted(found):
            for image_id, text in found[chunk]:
                texts.setdefault(int(image_id), text)
        with whole_file(self.results[0], sync=True) as file:
            for image_id, text in sorted(texts.items()):
                line = json.dumps({"image_id": image_id, "text": text}, ensure_ascii=False) + "\n"
                file.write(line.encode(errors="replace"))
        return {"rows": len(texts)}

    def _lines(self) -> Iterator[tuple[int, list[tuple[int, str]]]]:
        for path in self._parts():
            for line in path.read_bytes().split(b"\n"):
                try:
                    chunk, pairs = json.loads(line)
                except ValueError:  # an incomplete line
                    continue
                yield int(chunk), pairs
