"""The module of D2S-VSE: prompts that enrich caption embeddings, and distillation from dense captions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itr.data.features.stored import TeacherFeatures
from itr.data.loading.fields import DENSE, Field
from itr.errors import UserError
from itr.losses.distillation import DistillationKind
from itr.losses.distillation import distillation as distillation_loss
from itr.methods.base import MethodModule
from itr.methods.d2s_teacher import FrozenText
from itr.types import Batch, Encoded, Pairs, Tokens

TEACHER = "d2s_dense"
CACHED = "teacher_dense"


class D2SModule(MethodModule):
    """The prompts with their decoder, and the frozen teacher.

    Args:
        decoder: maps words [C, L, D] and their mask [C, L] to embeddings [C, D].
        teacher: embeds dense captions; None if there is no distillation or the embeddings are cached.
        residual: see `D2S`.
        distillation: see `D2S`.
        cached: whether the dense embeddings are read from files; False without distillation.
        normalise_in_evaluation: see `D2S`.
    """

    def __init__(
        self,
        decoder: nn.Module,
        teacher: FrozenText | None,
        residual: bool,
        distillation: DistillationKind,
        cached: bool,
        normalise_in_evaluation: bool,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.normalise_in_evaluation = normalise_in_evaluation
        self.distillation: DistillationKind = distillation
        self.decoder = decoder
        self.teacher = teacher
        self.cached = cached
        self.stage1: Tensor
        if self.cached:  # identity of the weights that training started from, for resumed runs
            self.register_buffer("stage1", torch.zeros(16, dtype=torch.uint8))

    def embed_text(self, encoded: Encoded) -> Encoded:
        """Add the pooled prompt outputs to the pooled text embeddings [C, D]."""
        prompt: Tensor = self.decoder(encoded.tokens, encoded.mask)
        if self.normalise_in_evaluation and not self.training:
            # NOTE: the authors normalize in evaluation but not in training, so they evaluate a different embedding
            # from the one they train. Here both are the same, unless one of their checkpoints requires it.
            prompt = F.normalize(prompt, dim=-1)
        pooled = encoded.pooled + prompt if self.residual else prompt
        return encoded.replace(pooled=pooled)

    def expect(self, fields: Mapping[str, Field]) -> None:
        """Check that the cached dense embeddings come from this run's first stage.

        Raises:
            UserError: they were computed with other weights than those training started from.
        """
        field = fields.get(CACHED)
        if not self.cached or not isinstance(field, TeacherFeatures):
            return
        made_by, wanted = field.file.header.weights, bytes(self.stage1.tolist()).hex()
        if made_by != wanted:
            raise UserError(
                f"the dense embeddings {field.file.paths.rows} were computed with other weights than training starts "
                f"from; compute them with the checkpoint given as D2S.stage1:\n{field.file.command()}"
            )

    def prepare(self, batch: Batch) -> dict[str, Tensor]:
        """The teacher's embedding of the dense caption of each caption's image [C, D].

        Raises:
            UserError: the batch lacks the dense captions, or their cached embeddings.
        """
        if self.cached:
            rows = batch.image_extra.get(CACHED)
            if not isinstance(rows, Tensor):
                raise UserError(
                    "D2S.cached is on, but the batch has no dense embeddings; compute them with `itr features`"
                )
            return {TEACHER: rows[batch.image_index]}
        if self.teacher is None:
            return {}
        dense = batch.image_extra.get(DENSE)
        if not isinstance(dense, Tokens):
            raise UserError(
                "D2S distills dense captions, but the batch has none: generate them with `itr densify`, give a column "
                "`dense` to `itr prepare table`, or set D2S.weight to 0"
            )
        return {TEACHER: self.teacher(dense)[batch.image_index]}

    def losses(self, pairs: Pairs) -> dict[str, Tensor]:
        """`distillation`: the contribution of these rows to the distance from the teacher's dense embeddings."""
        if TEACHER not in pairs.extra:
            return {}
        student = pairs.text.rows(pairs.rows).pooled
        student = student if student.dtype == torch.float64 else student.float()
        teacher = pairs.extra[TEACHER][pairs.rows]
        return {"distillation": pairs.share * distillation_loss(student, teacher, self.distillation)}
