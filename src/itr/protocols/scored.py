"""The input of image-caption protocols: embeddings from a file, or computed from shards by a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from itr.commands.inputs import check_scored, chosen_model
from itr.data.datamodule import ShardData
from itr.data.shards.schema import Sample, Shard
from itr.data.shards.tars import read_tar
from itr.distributed import choose_device
from itr.embedding.files import check_gallery, load_embeddings
from itr.embedding.models import open_model
from itr.embedding.shards import embed_shards
from itr.errors import UserError
from itr.evaluation.gallery import Gallery
from itr.evaluation.provenance import measured
from itr.evaluation.scoring import scorer_of
from itr.files.digests import file_digest
from itr.module import RetrievalModule
from itr.protocols.coco import caption_ids, judged


@dataclass
class Scored:
    """The embeddings to score, and how to compute them.

    Attributes:
        out: output file, FILE.json.
        embeddings: .npz or .safetensors file with image, text, image_id, caption_id and caption_image_id, written by
            `itr embed` or another program; give either this or a checkpoint and shards.
        ckpt_path: checkpoint written by `itr fit` or `itr convert`. With --embeddings, give the checkpoint that
            computed them if its model scores pairs by more than the cosine.
        model: instead of a checkpoint, a run folder, open_clip:MODEL/TAG, or a dual encoder of transformers.
        data: shard folder.
        split: data set split to evaluate.
        batch_size: images embedded at a time.
        num_workers: worker processes that decode images.
        device: cpu, cuda, cuda:1 ...; auto uses a GPU if there is one.
        precision: precision of the towers; scores are exact in any case.
        features: folder written by `itr features`, for a model whose backbone takes features instead of pixels.
    """

    out: str
    embeddings: str | None = None
    ckpt_path: str | None = None
    model: str | None = None
    data: str | None = None
    split: str = "test"
    batch_size: int = 64
    num_workers: int = 2
    device: str = "auto"
    precision: Literal["32", "bf16-mixed"] = "32"
    features: str | None = None

    def __post_init__(self) -> None:
        check_scored(self.embeddings, self.name, self.data)

    @property
    def name(self) -> str | None:
        """The name of the model, see `itr.embedding.models.open_model`; None if there is none.

        Raises:
            UserError: two are given.
        """
        return None if self.ckpt_path is None and self.model is None else chosen_model(self.ckpt_path, self.model)

    @property
    def where(self) -> torch.device:
        """The device for embedding and scoring."""
        return torch.device(choose_device(self.device))

    def load(self) -> Loaded:
        """The embeddings, keyed by the ids in the file or the shards."""
        if self.embeddings is not None:
            path, scorer, made_by = Path(self.embeddings).expanduser(), None, None
            if self.name is not None:
                module, made_by = open_model(self.name)
                scorer = scorer_of(module)
            model: dict[str, Any] = {"embeddings": path.name, "blake2b": file_digest(path) if path.is_file() else ""}
            gallery = load_embeddings(path, scorer)
            return Loaded(gallery, model if made_by is None else {**model, "made_by": made_by}, {}, [])
        assert self.name is not None
        assert self.data is not None
        module, identity = open_model(self.name)
        return self.of_shards(module, identity, self.data)

    def of_shards(self, module: RetrievalModule, identity: dict[str, Any], folder: str) -> Loaded:
        """A model's embeddings of the split in a shard folder."""
        shards = ShardData(
            folder,
            eval_batch_size=self.batch_size,
            num_workers=self.num_workers,
            predict_split=self.split,
            features=self.features,
        )
        embed_shards(module, shards, self.where, self.precision)
        check_gallery(module.last_gallery, self.name or "the model")
        return Loaded(module.last_gallery, identity, shards.identity("predict"), shards.found["predict"].shards)

    def load_coco(self) -> Loaded:
        """The embeddings, keyed by COCO's image and annotation ids."""
        found = self.load()
        if self.data is None:
            return found
        samples = (sample for shard in found.shards for sample in read_tar(shard.place))
        return replace(found, gallery=by_coco_ids(found.gallery, samples))


@dataclass
class Loaded:
    """Embeddings, and what they are of.

    Attributes:
        gallery: the embeddings.
        model: identity of the model that computed them.
        data: identity of the split; empty for a file of embeddings.
        shards: its shards.
    """

    gallery: Gallery
    model: dict[str, Any]
    data: dict[str, Any]
    shards: list[Shard]

    def measured(self, gallery: Gallery, **further: Any) -> dict[str, Any]:
        """The identity of the data with the counts of `gallery`, the part of the embeddings that was measured."""
        samples = gallery.num_samples
        return measured(self.data, len(gallery.image_id), len(gallery.text_id), samples) | further


def by_coco_ids(gallery: Gallery, samples: Iterator[Sample]) -> Gallery:
    """Key a gallery of COCO's test set by COCO's ids instead of those of the shards.

    `itr prepare coco` stores COCO's ids in each sample. If the captions came from a file of plain lines, their order
    must be that of COCO's list of 25,000 captions, which is verified with the images.

    Raises:
        UserError: the ids are not in the shards and do not follow from the order of the captions.
    """
    images: dict[int, int] = {}
    captions: dict[int, int] = {}
    without: list[tuple[int, int]] = []
    for sample in samples:
        if not isinstance(sample.meta.get("source_id"), int):
            raise UserError(
                f"{sample.where} has no source_id, which is COCO's image id; prepare the shards with `itr prepare coco`"
            )
        images[sample.image_id] = sample.meta["source_id"]
        numbers = sample.meta.get("coco_caption_ids")
        if numbers:
            captions |= dict(zip(sample.caption_ids, numbers, strict=True))
        else:
            without += [(number, sample.meta["source_id"]) for number in sample.caption_ids]
    captions |= _ids_by_order(without)
    image_id, text_id, owner = (
        torch.tensor([table[i] for i in ids.tolist()])
        for table, ids in ((images, gallery.image_id), (captions, gallery.text_id), (images, gallery.text_image_id))
    )
    rows, columns = image_id.argsort(), text_id.argsort()
    return replace(gallery, image_id=image_id, text_id=text_id, text_image_id=owner).rows(rows, columns)


def _ids_by_order(captions: list[tuple[int, int]]) -> dict[int, int]:
    """COCO's id of each caption by our id, from its position in COCO's list; `captions` has our id and COCO's image."""
    if not captions:
        return {}
    known, owner = caption_ids(), judged("original", "t2i")
    ordered = sorted(captions)
    if len(ordered) != len(known) or any(
        owner[int(number)][0] != image for (_, image), number in zip(ordered, known, strict=True)
    ):
        raise UserError(
            "the shards have no coco_caption_ids, and their captions are not in the order of the 25,000 captions of "
            "the 5K test; prepare the shards from dataset_coco.json, or from an unchanged testall_caps.txt"
        )
    return {ours: int(number) for (ours, _), number in zip(ordered, np.asarray(known), strict=True)}
