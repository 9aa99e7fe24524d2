"""Shards to loaders: the data half of every run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch

from itr.backbones.base import Backbone
from itr.data.loading.pipeline import ShardLoader, ShardStream
from itr.data.loading.reading import Captions, Reading, Texts
from itr.data.model_fields import ModelFields
from itr.data.shards.locations import find_split, locate, read_positives
from itr.data.shards.patterns import names_tars
from itr.data.shards.positives import Positives
from itr.data.shards.remote import is_url, shown
from itr.data.shards.schema import Split, data_identity, split_identity
from itr.errors import UserError
from itr.images.transforms import Augmentation, EvaluationTransform, TrainingTransform

Stage = Literal["train", "val", "test", "predict"]


class ShardData(pl.LightningDataModule):
    """Streams a folder of shards to any backbone.

    Image size, normalisation and tokenizer are those of the backbone that is trained, so nothing here changes when
    the backbone does. Order, captions and augmentation depend on seed and epoch alone; every process gets the same
    number of batches; in evaluation every image is read once, with all its captions.

    Shards of others need no conversion: tars of images with `.txt` or `.json` beside them, as img2dataset writes
    them. Where this says a list of tars, it is `{00000..00041}.tar`, `*.tar`, `s3://bucket/a.tar`, or several of these
    with commas between them; URLs are http(s), s3, gs, hf, az and what else `itr.data.shards.remote` names.

    Args:
        root: folder, or its URL, that `itr prepare` wrote, or with tars in `train`, `val` and `test`; or a list of
            tars, which are one split.
        batch_size: pairs of a training batch, on each process.
        eval_batch_size: images of an evaluation batch, on each process.
        num_workers: processes that decode, for each training process; 0 decodes in the training process.
        captions: captions an image gives in an epoch: 1 draws one, k draws k for one encoding of the image, and `all`
            makes every caption a training pair of its own.
        texts: `captions`, or `dense` to train on the dense caption of each image instead (stage 1 of D2S-VSE).
        augmentation: what happens to training images.
        shuffle_buffer: samples among which each worker shuffles, kept as encoded bytes.
        seed: of order, drawn captions and augmentation; by default that of `--seed_everything`.
        max_skipped: training samples that may lack an image that decodes, or a caption, in an epoch of a process
            before the run stops; evaluation refuses the first.
        max_bad_shards: training shards that may be missing, cut off or damaged in an epoch of a process before the run
            stops. What they lack is taken from the shards that come next; evaluation refuses the first.
        max_pixels: larger images are refused before they are decoded.
        train_split: split to train on, or a list of tars: relative to `root`, by URL or from /.
        val_split: split that chooses the best checkpoint, or a list of tars; null trains without validation.
        test_split: split of `itr test`, or a list of tars.
        predict_split: split of `itr predict`, or a list of tars.
        features: folder that `itr features` wrote, for methods that learn from uni-modal teachers.
        cache: folder that keeps shards which come from a URL, for all processes of a machine; null reads them through.
    """

    def __init__(
        self,
        root: str = "shards",
        batch_size: int = 128,
        eval_batch_size: int = 64,
        num_workers: int = 2,
        captions: Captions = 1,
        texts: Texts = "captions",
        augmentation: Augmentation = Augmentation(),  # noqa: B008
        shuffle_buffer: int = 1000,
        seed: int | None = None,
        max_skipped: int = 10,
        max_bad_shards: int = 0,
        max_pixels: int = 50_000_000,
        train_split: str = "train",
        val_split: str | None = "val",
        test_split: str = "test",
        predict_split: str = "test",
        features: str | None = None,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("shuffle_buffer", shuffle_buffer, 0),
            ("max_skipped", max_skipped, 0),
            ("max_bad_shards", max_bad_shards, 0),
            ("max_pixels", max_pixels, 1),
        ):
            if value < least:
                raise UserError(f"data.{name} is {value}; it must be {least} or more")
        if captions != "all" and (captions < 1 or batch_size % captions):
            raise UserError(f"data.captions is {captions}; it must be 1 or more and divide batch_size = {batch_size}")
        self.root, self.cache = locate(root), cache
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.augmentation = augmentation
        self.captions: Captions = captions
        self.texts: Texts = texts
        if texts == "dense" and captions == "all":
            raise UserError("data.captions is 'all', which counts sparse captions; with data.texts = dense set it to 1")
        self.shuffle_buffer = shuffle_buffer
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.max_skipped, self.max_bad_shards, self.max_pixels = max_skipped, max_bad_shards, max_pixels
        self.splits = {"train": train_split, "val": val_split or "", "test": test_split, "predict": predict_split}
        self.features = None if features is None else Path(features).expanduser()
        self.train_stream: ShardStream | None = None
        self.found: dict[Stage, Split] = {}

    def train_dataloader(self) -> ShardLoader:
        """Batches of `batch_size` pairs, shuffled anew each epoch."""
        stream = self._stream("train")
        if not len(stream):
            pairs = stream.total * (1 if self.captions == "all" else self.captions)
            raise UserError(
                f"split {self.splits['train']!r} of {self.root} holds {pairs} pairs, which do not fill one batch of "
                f"{self.batch_size} on each of {self._trainer.world_size} process(es); lower --data.batch_size"
            )
        self.train_stream = stream
        return self._loader(stream, self._training_position)

    def val_dataloader(self) -> ShardLoader | list[Any]:
        """Every image of the validation split once."""
        if not self.splits["val"]:
            return []
        return self._loader(self._stream("val"), lambda: (0, 0))

    def test_dataloader(self) -> ShardLoader:
        """Every image of the test split once."""
        return self._loader(self._stream("test"), lambda: (0, 0))

    def predict_dataloader(self) -> ShardLoader:
        """Every image of the split to embed once."""
        return self._loader(self._stream("predict"), lambda: (0, 0))

    def positives(self, stage: Stage) -> Positives | None:
        """All true matches of a split, where its shards tell them (those of made-up scenes do)."""
        pairs = read_positives(self.root, self.splits[stage])
        return None if pairs is None else Positives.from_pairs(*pairs)

    def identity(self, stage: Stage) -> dict[str, Any]:
        """Hash and counts of a split, which tell it from any other."""
        return split_identity(self._find(stage), self.splits[stage])

    def order(self) -> dict[str, Any]:
        """What the order of a training epoch depends on, besides the epoch."""
        stream = self.train_stream
        assert stream is not None, "training has not begun"
        return {
            "processes": self._trainer.world_size,
            "workers": min(self.num_workers, len(stream)),
            "batch_size": self.batch_size,
            "captions": self.captions,
            "texts": self.texts,
            "shuffle_buffer": self.shuffle_buffer,
            "seed": self.seed,
            "shards": data_identity(stream.reading.split),
        }

    @property
    def skipped(self) -> int:
        """Training samples of this process that could not be used in the epoch so far."""
        return 0 if self.train_stream is None else self.train_stream.skipped

    @property
    def bad_shards(self) -> int:
        """Training shards of this process that were missing or damaged in the epoch so far."""
        return 0 if self.train_stream is None else self.train_stream.bad_shards

    @property
    def _trainer(self) -> pl.Trainer:
        if self.trainer is None:
            raise UserError("ShardData takes image size and tokenizer from the model: give both to a Trainer")
        return self.trainer

    def _training_position(self) -> tuple[int, int]:
        trainer = self._trainer
        done = trainer.fit_loop.epoch_loop.batch_progress.current.completed if trainer.fit_loop.restarting else 0
        return trainer.current_epoch, done

    def _find(self, stage: Stage) -> Split:
        split = self.splits[stage]
        if stage == "val" and names_tars(self.root) and not (names_tars(split) or is_url(split)):
            raise UserError(
                f"data.root {self.root} lists tars, which are one split: training and validation would see the same "
                "images. Give --data.val_split tars of its own, or null to train without validation"
            )
        return find_split(self.root, split, self.cache, strict=stage != "train" or not self.max_bad_shards)

    def _stream(self, stage: Stage) -> ShardStream:
        trainer, training = self._trainer, stage == "train"
        backbone = trainer.lightning_module.backbone
        assert isinstance(backbone, Backbone)
        places = self.eval_batch_size
        if training:
            places = self.batch_size if self.captions == "all" else self.batch_size // self.captions
        split = self.found[stage] = self._find(stage)
        if "train" in self.found and "val" in self.found:  # Lightning asks for either first
            check_apart(self.found["train"], self.found["val"], self.splits["val"])
        needed = self._needed(split, stage)
        reading = Reading(
            split=split,
            captions=self.captions,
            batch_items=places,
            seed=self.seed,
            shuffle_buffer=self.shuffle_buffer,
            max_pixels=self.max_pixels,
            max_skipped=self.max_skipped,
            max_bad_shards=self.max_bad_shards,
            texts=self.texts if training else "captions",
            dense=needed.dense_texts if training else None,
        )
        spec = backbone.image_spec
        transform = TrainingTransform(spec, self.augmentation) if training else EvaluationTransform(spec)
        tokenizer, rank, world = backbone.tokenizer, trainer.global_rank, trainer.world_size
        fields = needed.open()
        features = next((field for field in fields if field.name == backbone.image_field), None)
        others = [field for field in fields if field is not features]
        return ShardStream(reading, training, transform, tokenizer, rank, world, others, features)

    def _needed(self, split: Split, stage: Stage) -> ModelFields:
        module = self._trainer.lightning_module
        return ModelFields(module, split, self.root, self.splits[stage], self.texts, self.features, stage)

    def _loader(self, stream: ShardStream, position: Any) -> ShardLoader:
        workers = min(self.num_workers, len(stream))
        return ShardLoader(
            stream,
            position,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            generator=torch.Generator(),  # its own: beginning an epoch must not move the run's random numbers
        )


def check_apart(training: Split, validation: Split, name: str) -> None:
    """Refuse to validate on shards that are trained on, by their places and, where they are known, checksums.

    Raises:
        UserError: a shard is in both.
    """
    known = {mark for shard in training.shards for mark in (shard.place.location, shard.sha256) if mark}
    for shard in validation.shards:
        if shard.place.location in known or shard.sha256 in known:
            raise UserError(
                f"shard {shown(shard.place.location)} of data.val_split = {name!r} is trained on too, so the best "
                "checkpoint would be one that learnt by heart; give --data.val_split shards of its own, or null"
            )
