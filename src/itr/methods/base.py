"""The interface of methods: a method adds parameters, changes embeddings and adds losses, with any backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import lightning.pytorch as pl
from torch import Tensor, nn

from itr.backbones.base import Backbone
from itr.component import Component
from itr.data.loading.fields import Field
from itr.types import Batch, Encoded, Pairs


class MethodModule(nn.Module):
    """The part of the model that a method adds. Its parameters are trained, saved and restored with the backbone's.

    Attributes:
        needs_tokens: whether `change_scores` or `losses` uses token-level features, as in `Backbone`.
    """

    needs_tokens: bool = False

    def embed_image(self, encoded: Encoded) -> Encoded:
        """Change the embeddings of images, in training and in evaluation; unchanged by default."""
        return encoded

    def embed_text(self, encoded: Encoded) -> Encoded:
        """Change the embeddings of captions, in training and in evaluation; unchanged by default."""
        return encoded

    def change_scores(self, scores: Tensor, image: Encoded, text: Encoded) -> Tensor:
        """Change the scores of I images against C captions [I, C], in training, evaluation and search.

        Args:
            scores: scores of the backbone, changed by the methods before this one.
            image: the images, after all methods' `embed_image`.
            text: the captions, after all methods' `embed_text`.
        """
        return scores

    def expect(self, fields: Mapping[str, Field]) -> None:
        """Check the fields of the training data, by name, before the first batch.

        Raises:
            UserError: a field was made for another model.
        """

    def prepare(self, batch: Batch) -> dict[str, Tensor]:
        """Further values for this process's captions, each [C, ...], such as a teacher's; `Pairs.extra` contains them.

        Raises:
            UserError: the batch lacks a field that they are computed from.
        """
        return {}

    def losses(self, pairs: Pairs) -> dict[str, Tensor]:
        """The share of `pairs.rows` in each loss term, by name and without its weight, after all methods' `embed_*`.

        A batch's loss term is the sum of the shares of its blocks of rows, however it is divided into blocks. Compare
        the embeddings of these rows with those of all B pairs, sum over the rows and divide by B. Multiply a term that
        does not consist of rows, such as a regulariser, by `pairs.share`. `pairs.score` computes the rows and columns
        of another similarity, and `pairs.progress` is the progress of training.
        """
        return {}

    def scalars(self) -> dict[str, Tensor]:
        """Values to log, by name."""
        return {}

    def clamp(self) -> None:
        """Clamp learnable values to their bounds. Called after each optimizer step."""


class Method(Component, pl.Callback, ABC):
    """Settings and callbacks of a method; it has no parameters itself.

    The module that `build` returns becomes part of `RetrievalModule`, so a checkpoint opens without further arguments.

    Attributes:
        name: key of its module in the checkpoint and prefix of its values in the log.
        needs: fields of a training batch that it uses (`itr.data.loading.fields` lists them). The data module reads
            them; if one is missing, its error message names the command that creates it.
        replaces_backbone: whether `build` replaces the weights of the backbone, which `model.weights` sets too.
    """

    name: str
    needs: tuple[str, ...] = ()
    replaces_backbone: bool = False

    def fields(self) -> Sequence[Field]:
        """User-defined fields that the loader's workers read for the method; called after `setup`."""
        return ()

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each loss term that `MethodModule.losses` returns."""
        return {}

    @abstractmethod
    def build(self, backbone: Backbone) -> MethodModule:
        """Build the module for a backbone."""
