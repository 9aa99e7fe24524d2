"""What methods need of a training batch beyond images and captions: opened, or the command that makes it told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from itr.data.features.stored import FeatureFile, TeacherFeatures, features_command
from itr.data.loading.dense_texts import DenseTexts
from itr.data.loading.fields import CAPTIONS, DENSE, CaptionTexts, DenseCaptions, Field
from itr.data.loading.reading import Texts
from itr.data.shards.locations import resolve
from itr.data.shards.schema import Split, data_identity
from itr.errors import UserError
from itr.teachers.base import MODALITIES, Modality


@dataclass
class MethodFields:
    """The fields that the methods of a model need of a training split.

    Attributes:
        module: the model, an `itr.module.RetrievalModule`.
        split: the training shards.
        root: where they are, see `itr.data.shards.locations.find_split`.
        name: which split they are, or a list of tars.
        texts: which texts of a sample are its captions.
        features: folder that `itr features` wrote.
    """

    module: Any
    split: Split
    root: str
    name: str
    texts: Texts
    features: Path | None

    @property
    def needs(self) -> list[str]:
        """The fields, each as often as it is needed."""
        return [need for method in self.module.method_callbacks for need in method.needs]

    @cached_property
    def dense_texts(self) -> DenseTexts | None:
        """The dense captions beside the shards, if they are used."""
        if self.texts != "dense" and DENSE not in self.needs:
            return None
        return DenseTexts.open(self.root, self.name, data_identity(self.split))

    def open(self) -> list[Field]:
        """The fields, which the methods have looked at.

        Raises:
            UserError: one is not there, or belongs to other data or another model.
        """
        makers: dict[str, Callable[[], Field]] = {
            DENSE: lambda: DenseCaptions(self.module.backbone.tokenizer, self.dense_texts),
            CAPTIONS: CaptionTexts,
            **{f"teacher_{m}": partial(self._teacher, m) for m in MODALITIES},
        }
        for need in self.needs:
            if need not in makers:
                raise UserError(f"a method needs the field {need!r}, and the data module knows {', '.join(makers)}")
        fields = [makers[need]() for need in dict.fromkeys(self.needs)]
        fields += [field for method in self.module.method_callbacks for field in method.fields()]
        for method in self.module.methods.values():
            method.expect({field.name: field for field in fields})
        return fields

    def _teacher(self, modality: Modality) -> Field:
        root, name = resolve(self.root, self.name, "train")
        if modality == "text" and self.texts == "dense":
            raise UserError("features of a text teacher are those of sparse captions; leave data.texts = dense away")
        if self.features is None:
            modalities: list[Modality] = [m for m in MODALITIES if f"teacher_{m}" in self.needs]
            commands = [features_command(root, name, m, "features") for m in modalities]
            raise UserError(
                "a method needs features of frozen teachers: make them by\n" + "\n".join(commands) + "\n"
                "and give --data.features features. `itr features --help` tells which teachers there are"
            )
        return TeacherFeatures(FeatureFile.open(self.features, name, modality, data_identity(self.split), root))
