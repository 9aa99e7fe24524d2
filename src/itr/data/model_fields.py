"""Open the batch fields that a model needs beyond images and captions, or name the command that creates them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from itr.backbones.base import Side
from itr.data.features.headers import features_command
from itr.data.features.stored import FeatureFile, TeacherFeatures
from itr.data.loading.dense_texts import DenseTexts
from itr.data.loading.fields import CAPTIONS, DENSE, CaptionTexts, DenseCaptions, Field, check_first_dense
from itr.data.loading.reading import Texts
from itr.data.shards.locations import resolve
from itr.data.shards.patterns import names_tars
from itr.data.shards.schema import Split, data_identity
from itr.data.towers.choice import choose
from itr.data.towers.encoding import Decoding, Job, keep_outputs, towers_folder
from itr.data.towers.outputs import TowerOutputs
from itr.errors import UserError
from itr.images.transforms import Augmentation
from itr.teachers.base import MODALITIES, Modality


@dataclass
class ModelFields:
    """The fields that a model needs for a split: those of its backbone, and for training also those of its methods.

    Attributes:
        module: the model, an `itr.module.RetrievalModule`.
        split: the shards.
        root: their location, see `itr.data.shards.locations.find_split`.
        name: name of the split, or a list of tars.
        texts: which texts of a sample are used as captions.
        features: output folder of `itr features`.
        stage: what the split is used for.
    """

    module: Any
    split: Split
    root: str
    name: str
    texts: Texts
    features: Path | None
    stage: str = "train"

    @property
    def needs(self) -> list[str]:
        """The names of the needed fields, repeated if several parts need one."""
        backbone = self.module.backbone
        images = [] if backbone.image_field is None else [backbone.image_field]
        return images + [need for part in (backbone, *self._methods) for need in part.needs]

    @property
    def _methods(self) -> list[Any]:
        return list(self.module.method_callbacks) if self.stage == "train" else []

    @cached_property
    def dense_texts(self) -> DenseTexts | None:
        """The dense captions stored next to the shards, if they are used."""
        if self.texts != "dense" and DENSE not in self.needs:
            return None
        found = DenseTexts.open(self.root, self.name, data_identity(self.split))
        if found is None and self.stage == "train":
            check_first_dense(self.split)
        return found

    def open(self) -> list[Field]:
        """Open the fields, with `image_field` first, and let the methods check them.

        Raises:
            UserError: a field is missing, or belongs to other data or another model.
        """
        makers: dict[str, Callable[[], Field]] = {
            DENSE: lambda: DenseCaptions(self.module.backbone.tokenizer, self.dense_texts),
            CAPTIONS: CaptionTexts,
            **{f"teacher_{m}": partial(self._teacher, m) for m in MODALITIES},
        }
        own = {field.name: field for part in (self.module.backbone, *self._methods) for field in part.fields()}
        fields: dict[str, Field] = {}
        for need in self.needs:
            if need not in own and need not in makers:
                raise UserError(
                    f"the model needs the field {need!r}, but its backbone and methods do not define it in `fields()`, "
                    f"and the data module provides only {', '.join(makers)}"
                )
            if need not in fields:
                fields[need] = own[need] if need in own else makers[need]()
        fields |= own
        if self.stage == "train":
            for method in self.module.methods.values():
                method.expect(fields)
        return list(fields.values())

    def outputs(
        self, trainer: pl.Trainer, augmentation: Augmentation, folder: Path | None, decoding: Decoding
    ) -> dict[Side, TowerOutputs]:
        """What frozen towers return for a split that training reads in each epoch; computed now if it is not there.

        Args:
            trainer: of the run, whose processes share the work.
            augmentation: of training images.
            folder: for the outputs of all splits; by default beside the shards.
            decoding: how samples are read.

        Raises:
            UserError: the outputs should be kept but would change, or those in the files are of something else.
        """
        if trainer.state.fn != "fit":
            return {}
        choice = choose(self.module.backbone, augmentation, self.texts)
        folder = folder or towers_folder(self.root, trainer.default_root_dir)
        name = self.stage if names_tars(self.name) else self.name
        return keep_outputs(choice, Job(self.module.backbone, folder, name, self.split, decoding, trainer))

    def _teacher(self, modality: Modality) -> Field:
        root, name = resolve(self.root, self.name, self.stage)
        if modality == "text" and self.texts == "dense":
            raise UserError("a text teacher needs the sparse captions; remove data.texts = dense")
        if self.features is None:
            modalities: list[Modality] = [m for m in MODALITIES if f"teacher_{m}" in self.needs]
            commands = [features_command(root, name, m, "features") for m in modalities]
            raise UserError(
                "the model needs features of frozen teachers; compute them with\n" + "\n".join(commands) + "\n"
                "and give --data.features features. `itr features --help` lists the teachers"
            )
        return TeacherFeatures(FeatureFile.open(self.features, name, modality, data_identity(self.split), root))
