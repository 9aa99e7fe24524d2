"""The contract of a plug-in method: it adds parameters, changes embeddings, and adds losses, on any backbone."""

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
    """What a method adds to the model. Its parameters are trained, saved and restored with the backbone's.

    Attributes:
        needs_tokens: whether `change_scores` or `losses` uses token-level features, as in `Backbone`.
    """

    needs_tokens: bool = False

    def embed_image(self, encoded: Encoded) -> Encoded:
        """Change the embeddings of images, in training and in evaluation; as they are by default."""
        return encoded

    def embed_text(self, encoded: Encoded) -> Encoded:
        """Change the embeddings of captions, in training and in evaluation; as they are by default."""
        return encoded

    def change_scores(self, scores: Tensor, image: Encoded, text: Encoded) -> Tensor:
        """Change the scores of I images against C captions [I, C], in training, evaluation and search alike.

        Args:
            scores: those of the backbone, after the methods before this one.
            image: the images, after all methods' `embed_image`.
            text: the captions, after all methods' `embed_text`.
        """
        return scores

    def expect(self, fields: Mapping[str, Field]) -> None:
        """Look at what is read for training, by name, before the first batch; refuse what does not belong to the model.

        Raises:
            UserError: a field was made for something else.
        """

    def prepare(self, batch: Batch) -> dict[str, Tensor]:
        """Further values of this process's captions, each [C, ...], to be found in `Pairs.extra` (a teacher's, say).

        Raises:
            UserError: the batch lacks a field that they are made of.
        """
        return {}

    def losses(self, pairs: Pairs) -> dict[str, Tensor]:
        """The share of `pairs.rows` in each loss term by name, not yet weighted, after all methods' `embed_*`.

        A term of the batch is the sum of the shares of blocks of rows, whatever the blocks. Compare the embeddings of
        these rows with those of all B, sum over rows and divide by B; multiply a term that is not made of rows, such
        as a regulariser, by `pairs.share`. `pairs.score` gives rows and columns of another similarity, and
        `pairs.progress` how far training has come.
        """
        return {}

    def scalars(self) -> dict[str, Tensor]:
        """Values worth watching, by name."""
        return {}

    def clamp(self) -> None:
        """Bring learnable values back into their bounds. Called after each optimizer step."""


class Method(Component, pl.Callback, ABC):
    """Knobs and life cycle of a method; it holds no parameters itself.

    The module that `build` returns lives in `RetrievalModule`, so that a checkpoint opens without further arguments.

    Attributes:
        name: key of its module in the checkpoint and prefix of its figures in the log.
        needs: fields of a training batch that it uses (`itr.data.loading.fields` knows them); the data module reads
            them, or says which command makes them.
    """

    name: str
    needs: tuple[str, ...] = ()

    def fields(self) -> Sequence[Field]:
        """Fields of its own that the loader's workers read for it; asked for after `setup`."""
        return ()

    @property
    def weights(self) -> dict[str, float]:
        """The factor of each loss term that `MethodModule.losses` gives."""
        return {}

    @abstractmethod
    def build(self, backbone: Backbone) -> MethodModule:
        """Make the module for a backbone."""
