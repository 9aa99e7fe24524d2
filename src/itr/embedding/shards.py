"""Embedding of shards with a model."""

from __future__ import annotations

import sys
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import TQDMProgressBar

from itr.commands.quieten import quieten
from itr.data.datamodule import ShardData
from itr.module import RetrievalModule


def embed_shards(
    module: RetrievalModule, data: ShardData, device: torch.device, precision: str
) -> dict[str, np.ndarray]:
    """The embeddings of every image and caption of a split, as arrays by key."""
    quieten()
    devices = [device.index] if device.index is not None else 1
    where: dict[str, Any] = {"accelerator": device.type, "devices": devices, "precision": precision}
    where |= {"callbacks": [TQDMProgressBar()]} if sys.stderr.isatty() else {"enable_progress_bar": False}
    trainer = pl.Trainer(**where, logger=False, enable_model_summary=False, enable_checkpointing=False)
    trainer.predict(module, data, return_predictions=False)
    return module.last_gallery.arrays()
