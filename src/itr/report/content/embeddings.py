"""The embeddings of a run's split, made once by its checkpoint and kept beside the report."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import torch

from itr.checkpoints import open_checkpoint
from itr.data.shards.locations import find_split
from itr.data.shards.schema import data_identity
from itr.distributed import choose_device
from itr.embedding.files import check_gallery, load_embeddings, read_embeddings
from itr.errors import UserError
from itr.evaluation.gallery import Gallery
from itr.evaluation.scoring import COSINE, scorer_of
from itr.files.digests import file_digest
from itr.files.writing import whole_file

log = logging.getLogger(__name__)


def checkpoint_embeddings(checkpoint: Path, root: Path, split: str, cache: Path, device: str) -> Gallery:
    """The embeddings that a checkpoint gives to a split, made unless `cache` holds them.

    Args:
        checkpoint: file of `itr fit` or `itr convert`.
        root: shard folder.
        split: which of its splits.
        cache: .npz file that keeps them.
        device: where to embed.

    Raises:
        UserError: checkpoint or shards can't be used.
    """
    identity = json.dumps(
        {"checkpoint": file_digest(checkpoint), "data": data_identity(find_split(root, split)), "split": split}
    )
    try:
        with np.load(cache, allow_pickle=False) as kept:
            same = str(kept["identity"]) == identity
        if same:
            stored = read_embeddings(cache)
            return stored.gallery(None if stored.scored_by == COSINE else scorer_of(open_checkpoint(str(checkpoint))))
    except Exception:  # none, of another checkpoint, or cut short: made anew
        pass
    from itr.data.datamodule import ShardData  # they take seconds to import, which kept embeddings do without
    from itr.embedding.shards import embed_shards

    shards = ShardData(str(root), num_workers=2, predict_split=split)
    module = open_checkpoint(str(checkpoint))
    arrays = embed_shards(module, shards, torch.device(choose_device(device)), "32")
    gallery = module.last_gallery
    check_gallery(gallery, f"{checkpoint} on {root}")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(cache) as file:
            np.savez(file, allow_pickle=False, identity=np.array(identity), **arrays)
    except OSError as error:
        log.info("embeddings are not kept for the next report: %s", error)
    return gallery


def ready_embeddings(path: Path, checkpoint: Path | None) -> Gallery:
    """The embeddings in a file, scored as the run's model does.

    Args:
        path: file of `itr embed`, or of anyone.
        checkpoint: the run's checkpoint; without one only embeddings that are scored by cosine can be used.

    Raises:
        UserError: the file is damaged, or needs another model.
    """
    try:
        scorer = None if checkpoint is None else scorer_of(open_checkpoint(str(checkpoint)))
    except UserError:  # a damaged checkpoint; the file may do without
        scorer = None
    return load_embeddings(path, scorer)
