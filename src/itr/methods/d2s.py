"""D2S-VSE: a caption's embedding is enhanced by prompts until it tells what a dense caption would."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itr.backbones.base import Backbone
from itr.data.features.stored import TeacherFeatures
from itr.data.loading.fields import DENSE, Field
from itr.errors import UserError
from itr.files.digests import weights_identity
from itr.losses.distillation import DistillationKind, distillation
from itr.methods.base import Method, MethodModule
from itr.methods.d2s_teacher import FrozenText, freeze_text_pooling, load_stage1
from itr.methods.prompt_decoder import CrossPrompts, Placement, PromptDecoder
from itr.types import Batch, Encoded, Pairs, Tokens

log = logging.getLogger(__name__)

TEACHER = "d2s_dense"
CACHED = "teacher_dense"


class D2S(Method):
    """Dense-to-sparse enhanced visual-semantic embedding, its second stage (ICCV 2025).

    t^ = t + p, with p the pooled outputs of K learnable prompts that a small transformer decodes with the words, in
    training and in evaluation; and L = L_objective(v, t^) + weight x distance(t^, t_d), where t_d is the embedding of
    the image's dense caption by the text encoder of the first stage, frozen
    (https://github.com/liuyyy111/d2s-vse). The first stage is a plain run on dense captions: `--data.texts=dense`.

    With further methods, list this one last: the distilled embedding is the one that is searched, after all of them.

    Args:
        stage1: checkpoint of the first stage; its backbone starts both student and teacher. None: no first stage.
        num_prompts: number K of prompts.
        depth: blocks of the decoder.
        heads: attention heads of each block.
        mlp_ratio: width of each block's perceptron over the embedding's.
        placement: prompts before the words, behind them, or half and half.
        cross_attention: prompts attend to the words once, instead of the decoder; depth, mlp_ratio, placement and
            positions then don't matter.
        pooling: how the K outputs become one.
        residual: add the pooled text to the prompts' outputs; otherwise what the backbone, and methods listed before
            this one, made of it is thrown away.
        distillation: distance to the frozen dense embedding.
        weight: factor of that distance; 0 for none, and then neither teacher nor dense captions are needed.
        cached: read the dense embeddings from files made by `itr features --modality dense --model STAGE1` instead of
            keeping a frozen teacher in the model; a step then costs no dense forward.
        positions: give the decoder positions, without which the placement makes no difference.
        gain: of the decoder's last norm at the start, hence p's length there; with 0 training starts at the first
            stage's embedding and p grows from nothing. 1 in the authors' code; not with `cross_attention`.
        attend_padding: let the prompts see padding, as the authors' checkpoints do; leave it off otherwise.
        normalise_in_evaluation: bring p to length 1 in evaluation, as the authors' checkpoints do; leave it off
            otherwise.
    """

    name = "d2s"

    def __init__(
        self,
        stage1: str | None = None,
        num_prompts: int = 100,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        placement: Placement = "surround",
        cross_attention: bool = False,
        pooling: Literal["mean", "gpo"] = "mean",
        residual: bool = True,
        distillation: DistillationKind = "cosine",
        weight: float = 1.0,
        cached: bool = False,
        positions: bool = True,
        gain: float = 1.0,
        attend_padding: bool = False,
        normalise_in_evaluation: bool = False,
    ) -> None:
        for name, value in (("num_prompts", num_prompts), ("depth", depth), ("heads", heads)):
            if value < 1:
                raise UserError(f"D2S.{name} is {value}; it must be 1 or more")
        for name, number in (("mlp_ratio", mlp_ratio), ("weight", weight)):
            if number < 0:
                raise UserError(f"D2S.{name} is {number}; it must be 0 or more")
        self.stage1 = stage1
        self.num_prompts, self.depth, self.heads, self.mlp_ratio = num_prompts, depth, heads, mlp_ratio
        self.placement, self.cross_attention, self.pooling = placement, cross_attention, pooling
        self.residual, self.distillation, self.weight, self.cached = residual, distillation, weight, cached
        self.positions, self.attend_padding = positions, attend_padding
        if gain != 1 and cross_attention:
            raise UserError(f"D2S.gain is {gain}; with cross_attention there is no last norm, leave it at 1")
        if gain == 0 and not residual:
            raise UserError("D2S.gain is 0; without the residual every caption's embedding would start at 0")
        self.gain = gain
        self.normalise_in_evaluation = normalise_in_evaluation
        self.needs = () if weight == 0 else (CACHED,) if cached else (DENSE,)

    @property
    def weights(self) -> dict[str, float]:
        """The factor of the distillation."""
        return {"distillation": self.weight} if self.weight > 0 else {}

    def build(self, backbone: Backbone) -> D2SModule:
        """Load the first stage into the backbone, then copy the teacher and make the decoder.

        A file that is missing is refused when training begins: a run that is resumed or tested does without.

        Raises:
            UserError: the first stage's checkpoint is of another backbone, or the sizes don't fit.
        """
        if backbone.dim % self.heads:
            raise UserError(f"D2S.heads is {self.heads}; it must divide the embedding's width {backbone.dim}")
        if self.stage1 is not None and Path(self.stage1).is_file():
            load_stage1(backbone, Path(self.stage1))
        teacher = FrozenText(backbone) if self.weight > 0 and not self.cached else None
        module = D2SModule(self, self._decoder(backbone.dim), teacher)
        if module.cached:
            module.stage1.copy_(torch.tensor(list(bytes.fromhex(weights_identity(backbone.state_dict())))))
        if not self.residual:
            freeze_text_pooling(backbone)
        return module

    def _decoder(self, dim: int) -> nn.Module:
        if self.cross_attention:
            return CrossPrompts(dim, self.num_prompts, self.heads, self.pooling, self.attend_padding)
        return PromptDecoder(
            dim, self.num_prompts, self.depth, self.heads, self.mlp_ratio, self.placement, self.pooling,
            self.positions, self.attend_padding, self.gain,
        )  # fmt: skip

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse an order in which this method undoes another.

        Raises:
            UserError: the residual is off, and a method is listed before this one.
        """
        methods: Any = pl_module.methods
        earlier = list(methods)[: list(methods).index(self.name)]
        if earlier and not self.residual:
            raise UserError(
                f"D2S.residual is false, so what {' and '.join(earlier)} made of captions would be thrown away; list "
                "D2S first, or leave residual on"
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a first stage that is not there; say so where it is left out.

        Raises:
            UserError: there is no such file, and no checkpoint to go on from either.
        """
        if self.stage1 is not None and not Path(self.stage1).is_file() and trainer.ckpt_path is None:
            raise UserError(
                f"D2S.stage1: there is no file {self.stage1!r}. Train the first stage with `itr fit --config "
                "f30k_d2s_stage1.yaml`, or with your own config and --data.texts=dense, and give the checkpoint that "
                "it writes; or set stage1 to null"
            )
        if self.weight > 0 and not self.cached:  # keep Lightning from wondering at the teacher
            warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start of training")
        if self.stage1 is None and trainer.ckpt_path is None:
            kept = self.weight > 0 and not self.cached
            taught = ", and the frozen teacher is the text encoder that training starts from" if kept else ""
            log.warning("D2S.stage1 is not set: training starts without the first stage%s", taught)

    def describe(self) -> dict[str, Any]:
        """Without the first stage's file: its weights are in the checkpoint."""
        description = super().describe()
        description["init_args"]["stage1"] = None
        return description


class D2SModule(MethodModule):
    """The prompts with their decoder, and the frozen teacher.

    Args:
        settings: the method's knobs.
        decoder: words [C, L, D] and mask [C, L] to embeddings [C, D].
        teacher: embeds dense captions; None where nothing is distilled.
    """

    def __init__(self, settings: D2S, decoder: nn.Module, teacher: FrozenText | None) -> None:
        super().__init__()
        self.residual = settings.residual
        self.normalise_in_evaluation = settings.normalise_in_evaluation
        self.distillation: DistillationKind = settings.distillation
        self.decoder = decoder
        self.teacher = teacher
        self.cached = settings.cached and settings.weight > 0
        self.stage1: Tensor
        if self.cached:  # identity of the weights that training started from, for a run that is resumed
            self.register_buffer("stage1", torch.zeros(16, dtype=torch.uint8))

    def embed_text(self, encoded: Encoded) -> Encoded:
        """Add what the prompts made of the words to the pooled text [C, D]."""
        prompt: Tensor = self.decoder(encoded.tokens, encoded.mask)
        if self.normalise_in_evaluation and not self.training:
            # NOTE: the authors normalise in evaluation but not in training, so their models are searched with another
            # embedding than the trained one. Here both are the trained one, unless a checkpoint of theirs asks for it.
            prompt = F.normalize(prompt, dim=-1)
        pooled = encoded.pooled + prompt if self.residual else prompt
        return encoded.replace(pooled=pooled)

    def expect(self, fields: Mapping[str, Field]) -> None:
        """Refuse dense embeddings that another first stage made.

        Raises:
            UserError: the file's header names other weights than those training started from.
        """
        field = fields.get(CACHED)
        if not self.cached or not isinstance(field, TeacherFeatures):
            return
        made_by, wanted = field.file.header.weights, bytes(self.stage1.tolist()).hex()
        if made_by != wanted:
            raise UserError(
                f"the dense embeddings {field.file.paths.rows} were made by other weights than training starts from; "
                f"make them by the checkpoint that D2S.stage1 names:\n{field.file.command()}"
            )

    def prepare(self, batch: Batch) -> dict[str, Tensor]:
        """The teacher's embedding of the dense caption of each caption's image [C, D].

        Raises:
            UserError: the batch has neither dense captions nor, where they are cached, their embeddings.
        """
        if self.cached:
            rows = batch.image_extra.get(CACHED)
            if not isinstance(rows, Tensor):
                raise UserError("D2S.cached is on, and the batch has no dense embeddings; `itr features` makes them")
            return {TEACHER: rows[batch.image_index]}
        if self.teacher is None:
            return {}
        dense = batch.image_extra.get(DENSE)
        if not isinstance(dense, Tokens):
            raise UserError(
                "D2S distils dense captions, and the batch has none: `itr densify` makes them, `itr prepare table` "
                "keeps a column `dense`; or set D2S.weight to 0"
            )
        return {TEACHER: self.teacher(dense)[batch.image_index]}

    def losses(self, pairs: Pairs) -> dict[str, Tensor]:
        """`distillation`: the share of these rows in the texts' distance to the teacher's dense embeddings."""
        if TEACHER not in pairs.extra:
            return {}
        student = pairs.text.rows(pairs.rows).pooled
        student = student if student.dtype == torch.float64 else student.float()
        teacher = pairs.extra[TEACHER][pairs.rows]
        return {"distillation": pairs.share * distillation(student, teacher, self.distillation)}
