"""Measures the memory of a training process and its workers, for `overheads.py`, with and without CUSA's features.

    python benchmarks/overhead_memory.py SHARDS [FEATURES]

The result counts private memory and memory shared between processes (Pss_Anon and Pss_Shmem of
/proc/PID/smaps_rollup). Mapped files are reported separately: their pages belong to the system's cache, exist once for
all processes, and are freed when memory is needed.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from itr.backbones import CLIP
from itr.data.datamodule import ShardData
from itr.methods import CUSA
from itr.module import RetrievalModule
from itr.objectives import InfoNCE

TINY = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"width": 64, "heads": 1, "layers": 1},
}
WORKERS = 2


class PeakMemory(pl.Callback):
    """Records the most megabytes used by this process and its workers after any step of the second epoch."""

    def __init__(self) -> None:
        self.peak = {"own": 0.0, "files": 0.0}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Measure all processes."""
        if trainer.current_epoch:
            found = [rollup(pid) for pid in (os.getpid(), *children())]
            own = sum(entry["Pss_Anon"] + entry["Pss_Shmem"] for entry in found) / 1024
            files = sum(entry["Pss_File"] for entry in found) / 1024
            self.peak = {"own": max(self.peak["own"], own), "files": max(self.peak["files"], files)}


def rollup(pid: int) -> dict[str, int]:
    """Return the sums over a process's mappings in KiB, by name."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) for line in lines}


def children() -> list[int]:
    """Return the ids of the processes that this one has started."""
    return [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]


def main() -> None:
    """Train for two epochs and print the megabytes as JSON."""
    shards, features = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
    torch.manual_seed(0)
    module = RetrievalModule(CLIP(config=TINY), InfoNCE(), [CUSA()] if features else [])
    data = ShardData(shards, batch_size=64, num_workers=WORKERS, val_split=None, features=features, seed=0)
    memory = PeakMemory()
    trainer = pl.Trainer(
        accelerator="auto", devices=1, max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[memory],
    )  # fmt: skip
    trainer.fit(module, data)
    print(json.dumps({"processes": 1 + WORKERS, **memory.peak}))


if __name__ == "__main__":
    main()
