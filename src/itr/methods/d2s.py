"""D2S-VSE: prompts enrich the embedding of a caption so that it approaches that of a dense caption."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import nn

from itr.backbones.base import Backbone
from itr.commands.inputs import check_stage1
from itr.data.loading.fields import DENSE
from itr.errors import UserError
from itr.files.digests import weights_identity
from itr.losses.distillation import DistillationKind
from itr.methods.base import Method
from itr.methods.d2s_module import CACHED, D2SModule
from itr.methods.d2s_teacher import FrozenText, freeze_text_pooling, load_stage1
from itr.methods.prompt_decoder import CrossPrompts, Placement, PromptDecoder

log = logging.getLogger(__name__)


class D2S(Method):
    """Dense-to-sparse enhanced visual-semantic embedding, its second stage (ICCV 2025).

    t^ = t + p, where p are the pooled outputs of K learnable prompts that a small transformer decodes together with
    the words; L = L_objective(v, t^) + weight x distance(t^, t_d), where t_d is the embedding of the image's dense
    caption by the frozen text encoder of the first stage (https://github.com/liuyyy111/d2s-vse). The first stage is an
    ordinary run on dense captions: `--data.texts=dense`.

    With other methods, list this one last, because the distilled embedding is the final one used for retrieval.

    Args:
        stage1: checkpoint of the first stage, which initializes both student and teacher. None: no first stage.
        num_prompts: number K of prompts.
        depth: number of decoder blocks.
        heads: attention heads of each block.
        mlp_ratio: hidden width of each block's MLP relative to the embedding width.
        placement: prompts before the words, after them, or half and half.
        cross_attention: let the prompts attend to the words once instead of using the decoder; depth, mlp_ratio,
            placement and positions are then ignored.
        pooling: how the K outputs are pooled.
        residual: add the pooled text embedding to the prompt outputs; otherwise the pooled text embedding of the
            backbone and of methods listed before this one is discarded.
        distillation: distance to the frozen dense embedding.
        weight: weight of that distance; with 0 neither a teacher nor dense captions are needed.
        cached: read the dense embeddings from files made by `itr features --modality dense --model STAGE1` instead of
            keeping a frozen teacher in the model, which saves a forward pass per step.
        positions: add positions in the decoder; without them the placement has no effect.
        gain: initial weight of the decoder's last norm, hence the initial length of p; with 0, training starts at
            the embedding of the first stage. 1 in the authors' code; not with `cross_attention`.
        attend_padding: let the prompts attend to padding, as the authors' checkpoints require; otherwise keep it off.
        normalise_in_evaluation: scale p to unit length in evaluation, as the authors' checkpoints require; otherwise
            keep it off.
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
        self.replaces_backbone = stage1 is not None
        self.num_prompts, self.depth, self.heads, self.mlp_ratio = num_prompts, depth, heads, mlp_ratio
        self.placement, self.cross_attention, self.pooling = placement, cross_attention, pooling
        self.residual, self.distillation, self.weight, self.cached = residual, distillation, weight, cached
        self.positions, self.attend_padding = positions, attend_padding
        if gain != 1 and cross_attention:
            raise UserError(f"D2S.gain is {gain}; it must be 1 with cross_attention, which has no last norm")
        if gain == 0 and not residual:
            raise UserError("D2S.gain is 0; it must be above 0 without the residual, or all embeddings start at 0")
        self.gain = gain
        self.normalise_in_evaluation = normalise_in_evaluation
        self.needs = () if weight == 0 else (CACHED,) if cached else (DENSE,)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of the distillation."""
        return {"distillation": self.weight} if self.weight > 0 else {}

    def build(self, backbone: Backbone) -> D2SModule:
        """Load the first stage into the backbone, then copy the teacher and build the decoder.

        A missing stage-1 file is reported only when training begins; resumed runs and tests do not need it.

        Raises:
            UserError: the first stage has a different backbone, the number of heads does not divide the width, or the
                backbone keeps no words.
        """
        if not backbone.keeps_words:
            raise UserError(
                "D2S needs the words of a caption, and with this text_pooling the backbone keeps none; set it to mean "
                "or gpo"
            )
        if backbone.dim % self.heads:
            raise UserError(f"D2S.heads is {self.heads}; it must divide the embedding width {backbone.dim}")
        if self.stage1 is not None and Path(self.stage1).is_file():
            load_stage1(backbone, Path(self.stage1))
        teacher = FrozenText(backbone) if self.weight > 0 and not self.cached else None
        module = D2SModule(
            self._decoder(backbone.dim),
            teacher,
            self.residual,
            self.distillation,
            self.cached and self.weight > 0,
            self.normalise_in_evaluation,
        )
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
        """Check that this method does not discard the result of an earlier one.

        Raises:
            UserError: the residual is off, and another method is listed before this one.
        """
        methods: Any = pl_module.methods
        earlier = list(methods)[: list(methods).index(self.name)]
        if earlier and not self.residual:
            raise UserError(
                f"D2S.residual is false, which discards the caption embeddings of {' and '.join(earlier)}; list D2S "
                "first, or set residual to true"
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that the first stage exists; warn if it is not set.

        Raises:
            UserError: the file does not exist, and the run does not resume from a checkpoint.
        """
        if self.stage1 is not None and trainer.ckpt_path is None:
            check_stage1(self.stage1)
        if self.weight > 0 and not self.cached:  # the teacher is in eval mode on purpose
            warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start of training")
        if self.stage1 is None and trainer.ckpt_path is None:
            frozen = self.weight > 0 and not self.cached
            hint = "; the frozen teacher is a copy of the initial text encoder" if frozen else ""
            log.warning("D2S.stage1 is not set: training starts without a first stage%s", hint)

    def describe(self) -> dict[str, Any]:
        """The settings without the stage-1 file, because its weights are in the checkpoint."""
        description = super().describe()
        description["init_args"]["stage1"] = None
        return description
