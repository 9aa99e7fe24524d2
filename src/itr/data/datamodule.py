"""The data module: from shards to the loaders of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch

from itr.backbones.base import Backbone
from itr.commands.inputs import check_loading
from itr.data.loading.pipeline import ShardLoader, ShardStream
from itr.data.loading.reading import Captions, ReadOptions, Texts, check_disjoint
from itr.data.model_fields import ModelFields
from itr.data.shards.locations import find_split, normalize_root, read_positives
from itr.data.shards.patterns import names_tars
from itr.data.shards.positives import Positives
from itr.data.shards.remote import is_url
from itr.data.shards.schema import Split, data_identity, split_identity
from itr.data.towers.encoding import Decoding
from itr.errors import UserError
from itr.images.transforms import Augmentation, EvaluationTransform, TrainingTransform

Stage = Literal["train", "val", "test", "predict"]


class ShardData(pl.LightningDataModule):
    """Streams a folder of shards to any backbone.

    Image size, normalization and tokenizer come from the backbone, so nothing here changes when the backbone does.
    Order, captions and augmentation depend only on seed and epoch; every process gets the same number of batches; in
    evaluation, every image is read once, with all its captions.

    Third-party shards need no conversion: tars of images with `.txt` or `.json` files, as written by img2dataset. A
    list of tars is `{00000..00041}.tar`, `*.tar`, `s3://bucket/a.tar`, or several of these separated by commas; URLs
    may be http(s), s3, gs, hf, az and others listed in `itr.data.shards.remote`.

    Args:
        root: folder or URL, written by `itr prepare` or with tars in `train`, `val` and `test`; or a list of tars,
            which form one split.
        batch_size: pairs per training batch and process.
        eval_batch_size: images per evaluation batch and process.
        num_workers: number of decoding processes per training process; 0 decodes in the training process.
        captions: captions to use per image and epoch: 1 draws one, k draws k for one encoding of the image, and `all`
            makes every caption a training pair of its own.
        texts: `captions`, or `dense` to train on the dense caption of each image instead (stage 1 of D2S-VSE).
        augmentation: augmentation of training images.
        shuffle_buffer: number of encoded samples among which each worker shuffles.
        seed: seed of order, drawn captions and augmentation; by default that of `--seed_everything`.
        max_skipped: number of training samples without a decodable image or a caption, per epoch and process, above
            which the run stops; evaluation stops at the first.
        max_bad_shards: number of missing, truncated or damaged training shards, per epoch and process, above which the
            run stops. Samples of the following shards replace theirs; evaluation stops at the first.
        max_pixels: images with more pixels are rejected before they are decoded.
        train_split: split to train on, or a list of tars: relative to `root`, URLs or absolute paths.
        val_split: split that selects the best checkpoint, or a list of tars; null trains without validation.
        test_split: split of `itr test`, or a list of tars.
        predict_split: split of `itr predict`, or a list of tars.
        features: output folder of `itr features`, for methods with uni-modal teachers.
        cache: folder in which all processes of a machine cache shards from URLs; null streams them without a cache.
        towers: folder for outputs of frozen towers (see `model.backbone.cache`); by default `.towers` beside the
            shards, or in the run folder if they are remote or a list of tars.
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
        towers: str | None = None,
    ) -> None:
        super().__init__()
        numbers = {
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "num_workers": num_workers,
            "shuffle_buffer": shuffle_buffer,
            "max_skipped": max_skipped,
            "max_bad_shards": max_bad_shards,
            "max_pixels": max_pixels,
        }
        check_loading(numbers, captions, texts)
        self.root, self.cache = normalize_root(root), cache
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.augmentation = augmentation
        self.captions: Captions = captions
        self.texts: Texts = texts
        self.shuffle_buffer = shuffle_buffer
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.max_skipped, self.max_bad_shards, self.max_pixels = max_skipped, max_bad_shards, max_pixels
        self.splits = {"train": train_split, "val": val_split or "", "test": test_split, "predict": predict_split}
        self.features = None if features is None else Path(features).expanduser()
        self.towers = None if towers is None else Path(towers).expanduser()
        self.train_stream: ShardStream | None = None
        self.found: dict[Stage, Split] = {}
        self._positives: dict[Stage, Positives | None] = {}

    def train_dataloader(self) -> ShardLoader:
        """Batches of `batch_size` pairs, reshuffled each epoch."""
        stream = self._stream("train")
        if not len(stream):
            pairs = stream.total * (1 if self.captions == "all" else self.captions)
            raise UserError(
                f"split {self.splits['train']!r} of {self.root} contains {pairs} pairs, which do not fill a batch of "
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
        """All true matches of a split, if its shards list them, as those of the synthetic scenes do; read once."""
        if stage not in self._positives:
            pairs = read_positives(self.root, self.splits[stage])
            self._positives[stage] = None if pairs is None else Positives.from_pairs(*pairs)
        return self._positives[stage]

    def identity(self, stage: Stage) -> dict[str, Any]:
        """Hash and counts that identify a split, as they were when the run began to read it."""
        return split_identity(self.found.get(stage) or self._find(stage), self.splits[stage])

    def order(self) -> dict[str, Any]:
        """The settings that determine the order of a training epoch, except for the epoch itself."""
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
            "overfit_batches": self._trainer.overfit_batches,  # type: ignore[attr-defined]
            "shards": data_identity(stream.reading.split),
        }

    @property
    def skipped(self) -> int:
        """Number of training samples that this process has skipped so far in this epoch."""
        return 0 if self.train_stream is None else self.train_stream.skipped

    @property
    def bad_shards(self) -> int:
        """Number of training shards that this process has found missing or damaged so far in this epoch."""
        return 0 if self.train_stream is None else self.train_stream.bad_shards

    @property
    def _trainer(self) -> pl.Trainer:
        if self.trainer is None:
            raise UserError("ShardData needs a Trainer with a model, which sets image size and tokenizer")
        return self.trainer

    def _training_position(self) -> tuple[int, int]:
        trainer = self._trainer
        done = trainer.fit_loop.epoch_loop.batch_progress.current.completed if trainer.fit_loop.restarting else 0
        # The order of epoch 0 in all epochs makes the same first batches, with the same captions and augmentation.
        return 0 if trainer.overfit_batches else trainer.current_epoch, done  # type: ignore[attr-defined]

    def _find(self, stage: Stage) -> Split:
        split = self.splits[stage]
        if stage == "val" and names_tars(self.root) and not (names_tars(split) or is_url(split)):
            raise UserError(
                f"data.root {self.root} is a list of tars, which form one split, so training and validation would use "
                "the same images. Give --data.val_split its own tars, or null to train without validation"
            )
        return find_split(self.root, split, self.cache, strict=stage != "train" or not self.max_bad_shards)

    def _stream(self, stage: Stage) -> ShardStream:
        trainer, training = self._trainer, stage == "train"
        backbone = trainer.lightning_module.backbone
        assert isinstance(backbone, Backbone)
        batch_items = self.eval_batch_size
        if training:
            batch_items = self.batch_size if self.captions == "all" else self.batch_size // self.captions
        split = self.found[stage] = self._find(stage)
        if "train" in self.found and "val" in self.found:  # Lightning may ask for either first
            check_disjoint(self.found["train"], self.found["val"], self.splits["val"])
        if stage in ("val", "test"):
            self.positives(stage)  # those that belong to the shards now, not to what may replace them
        model_fields = self._model_fields(split, stage)
        reading = ReadOptions(
            split=split,
            captions=self.captions,
            batch_items=batch_items,
            seed=self.seed,
            shuffle_buffer=self.shuffle_buffer,
            max_pixels=self.max_pixels,
            max_skipped=self.max_skipped,
            max_bad_shards=self.max_bad_shards,
            texts=self.texts if training else "captions",
            dense=model_fields.dense_texts if training else None,
        )
        spec = backbone.image_spec
        transform = TrainingTransform(spec, self.augmentation) if training else EvaluationTransform(spec)
        tokenizer, rank, world = backbone.tokenizer, trainer.global_rank, trainer.world_size
        fields = model_fields.open()
        features = next((field for field in fields if field.name == backbone.image_field), None)
        others = [field for field in fields if field is not features]
        decoding = Decoding(self.num_workers, self.max_pixels, self.max_skipped if training else 0)
        outputs = model_fields.outputs(trainer, self.augmentation, self.towers, decoding)
        return ShardStream(reading, training, transform, tokenizer, rank, world, others, features, outputs)

    def _model_fields(self, split: Split, stage: Stage) -> ModelFields:
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
            generator=torch.Generator(),  # separate, so that starting an epoch does not change the run's random state
        )
