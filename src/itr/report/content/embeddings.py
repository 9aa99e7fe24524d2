"""The embeddings of a run's split, computed once by its checkpoint and cached next to the report."""

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
    """A checkpoint's embeddings of a split, from `cache` if it is up to date.

    Args:
        checkpoint: file written by `itr fit` or `itr convert`.
        root: shard folder.
        split: data set split to embed.
        cache: .npz file that stores the embeddings.
        device: device that embeds.

    Raises:
        UserError: the checkpoint or the shards are not usable.
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
    except Exception:  # the cache is missing or damaged: embed again
        pass
    from itr.data.datamodule import ShardData  # takes seconds to import and is not needed for cached embeddings
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
        log.info("could not cache the embeddings for the next report: %s", error)
    return gallery


def ready_embeddings(path: Path, checkpoint: Path | None) -> Gallery:
    """The embeddings in a file, scored by the run's model.

    Args:
        path: file written by `itr embed` or another program.
        checkpoint: the run's checkpoint; without it, the embeddings must be scored by cosine.

    Raises:
        UserError: the file is damaged, or must be scored by another model.
    """
    try:
        scorer = None if checkpoint is None else scorer_of(open_checkpoint(str(checkpoint)))
    except UserError:  # the checkpoint is damaged; embeddings scored by cosine do not need it
        scorer = None
    return load_embeddings(path, scorer)
