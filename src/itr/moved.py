"""Modules that have moved can still be imported by their old names, for code that was written before."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "itr.data.batches": "itr.data.loading.batches",
    "itr.data.dense_texts": "itr.data.loading.dense_texts",
    "itr.data.fields": "itr.data.loading.fields",
    "itr.data.images": "itr.images.transforms",
    "itr.data.items": "itr.data.loading.items",
    "itr.data.locations": "itr.data.shards.locations",
    "itr.data.pictures": "itr.images.decode",
    "itr.data.pipeline": "itr.data.loading.pipeline",
    "itr.data.plan": "itr.data.loading.plan",
    "itr.data.schema": "itr.data.shards.schema",
    "itr.data.streams": "itr.data.shards.streams",
    "itr.data.tars": "itr.data.shards.tars",
    "itr.data.features.teacher": "itr.teachers.base",
    "itr.data.features.teachers": "itr.teachers.load",
    "itr.evaluation.coco": "itr.protocols.coco",
    "itr.evaluation.embeddings": "itr.embedding.files",
    "itr.evaluation.encoder": "itr.embedding.encoder",
    "itr.evaluation.positives": "itr.data.shards.positives",
    "itr.backbones.clip_loading": "itr.backbones.towers.clip_loading",
    "itr.backbones.clip_towers": "itr.backbones.towers.clip_features",
    "itr.backbones.tower_building": "itr.backbones.towers.building",
    "itr.callbacks": "itr.runs.callbacks",
    "itr.optim": "itr.training.optim",
}


class _OldName(MetaPathFinder, Loader):
    """Finds a module by its old name; Python asks only for names that nothing else has found."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of the present name in place of the empty one, with a warning that names it."""
        old = module.__name__
        warnings.warn(f"{old} has moved: import {MOVED[old]}", FutureWarning, stacklevel=2)
        sys.modules[old] = importlib.import_module(MOVED[old])


def find_moved_modules() -> None:
    """Let old names be imported from now on."""
    if not any(isinstance(finder, _OldName) for finder in sys.meta_path):
        sys.meta_path.append(_OldName())
