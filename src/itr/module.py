"""Backbone + objective + methods -> one loss. The file to read first."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from itr.backbones import Backbone
from itr.component import plain
from itr.distributed import gather, gather_encoded
from itr.errors import UserError
from itr.evaluation.gallery import Gallery, GalleryBuilder
from itr.evaluation.retrieval import evaluate
from itr.evaluation.scoring import scorer_of
from itr.methods import Method, MethodModule
from itr.objectives import Objective
from itr.retriever import Retriever
from itr.state.starting_weights import StartingWeights
from itr.training.compiling import Compilation
from itr.training.equal_images import join_equal
from itr.training.gradient_cache import embed_parts
from itr.training.large_batch import LargeBatch
from itr.training.logging_steps import logs_now
from itr.training.optim import OptimizerSettings, clip_gradients, loss_scale, parameter_groups, scheduled_adamw
from itr.types import Batch, Encoded, Pairs, score_rows

log = logging.getLogger(__name__)


class RetrievalModule(Retriever):
    """Trains and evaluates image-text retrieval with any backbone, objective and methods.

    Args:
        backbone: the pair of towers.
        objective: the loss on the batch's similarity matrix.
        methods: plug-ins that add parameters, losses and changes to the embeddings, applied in this order.
        optimizer: AdamW and its schedule.
        large_batch: how a batch that does not fit is trained on.
        compilation: what `torch.compile` makes faster.
        weights: checkpoint of itr, or run folder, from whose weights a new run starts; its optimizer and counters are
            not used. A resumed run does not read it.

    Attributes:
        last_gallery: the embeddings that the last evaluation or prediction gave.
    """

    last_gallery: Gallery

    def __init__(
        self,
        backbone: Backbone,
        objective: Objective,
        methods: Sequence[Method] = (),
        optimizer: OptimizerSettings = OptimizerSettings(),  # noqa: B008
        large_batch: LargeBatch = LargeBatch(),  # noqa: B008
        compilation: Compilation = Compilation(),  # noqa: B008
        weights: str | None = None,
    ) -> None:
        start = None if weights is None else StartingWeights.open(weights, methods)
        if start is not None:
            start.fill_backbone(backbone)  # before a method copies a part of it
        super().__init__(backbone, methods)
        self.objective = objective
        self.optimizer_settings = optimizer
        self.large_batch = large_batch
        self.compilation = compilation
        self.method_callbacks = list(methods)
        self.loss_weights = {method.name: method.weights for method in methods}
        self.metrics: dict[str, float] = {}
        self.last_terms: dict[str, Tensor] = {}  # of the last training step, of the whole batch
        self._builder = GalleryBuilder(self.needs_tokens)
        if start is not None:
            start.fill_rest(objective, self.methods)

    # Training

    def on_fit_start(self) -> None:
        """Report what starts with random weights, and settings that may surprise."""
        if self.trainer.ckpt_path is None and self.backbone.untrained and self.trainer.is_global_zero:
            log.info("training starts with random weights: %s", ", ".join(self.backbone.untrained))
        self.large_batch.announce(self, self.trainer)
        self.compilation.begin(self)

    def on_fit_end(self) -> None:
        """Leave a module that runs as it is written."""
        self.compilation.end(self)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The weighted sum of the objective and all methods' terms."""
        terms = self.loss_terms(batch, self.current_epoch + batch_idx / self.trainer.num_training_batches)
        whole = self.large_batch.whole(terms)
        self._log_training(torch.stack(list(whole.values())).sum(), whole, len(batch))
        return torch.stack(list(terms.values())).sum()

    def loss_terms(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Every weighted term of the loss by name, after `progress` epochs.

        With `large_batch.local_loss` it is this process's part times the number of processes, so that DDP's mean is the
        gradient of the whole; `large_batch.whole` gives the values of the whole batch.
        """
        image, text, extra = self._embed_everything(batch)
        image_id = join_equal(gather(batch.text_image_id), gather(batch.text_content_id))
        if len(image_id) < 2:
            raise UserError(
                "a contrastive objective compares pairs, and this batch has one; set --data.batch_size to 2 or more"
            )

        def share(image: Encoded, text: Encoded, extra: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
            scores = score_rows(self.similarity, image, text, image_id, rows)
            return self._share(Pairs(image, text, image_id, scores, extra, progress))

        return self.large_batch.sum_of_shares(share, image, text, extra, self, loss_scale(self._trainer, self.device))

    def _share(self, pairs: Pairs) -> dict[str, Tensor]:
        """The share of some rows in every weighted term."""
        with torch.autocast(pairs.image_id.device.type, enabled=False):
            terms: dict[str, Tensor] = {"objective": self.objective(pairs.scores, pairs.progress)}
            for name, method in self.methods.items():
                assert isinstance(method, MethodModule)
                for term, value in method.losses(pairs).items():
                    terms[f"{name}/{term}"] = self.loss_weights[name][term] * value
        return terms

    def _embed_everything(self, batch: Batch) -> tuple[Encoded, Encoded, dict[str, Tensor]]:
        """Images, captions and what methods prepared, a row a pair of all processes."""
        parts = batch.parts(self.large_batch.gradient_cache)
        extras = [{k: v for m in self._method_modules() for k, v in m.prepare(part).items()} for part in parts]
        image, text = embed_parts(parts, self._embed_pairs, self)
        with torch.autocast(image.pooled.device.type, enabled=False):  # on a CPU it can't join features in float16
            extra = {name: gather(torch.cat([found[name] for found in extras])) for name in extras[0]}
        return gather_encoded(image, self.needs_tokens), gather_encoded(text, self.needs_tokens), extra

    def _embed_pairs(self, batch: Batch) -> tuple[Encoded, Encoded]:
        """Images and captions, a row a pair, with token-level features only where they are needed."""
        image, text = self.encode_images(batch), self.encode_texts(batch)
        if not self.needs_tokens:
            image, text = image.without_tokens(), text.without_tokens()
        return image.rows(batch.image_index), text

    def _log_training(self, loss: Tensor, terms: dict[str, Tensor], size: int) -> None:
        """Log the loss, and what it is made of where a logger takes it or an epoch ends: each value costs time."""
        self.log("train/loss", loss, batch_size=size)
        self.last_terms = terms
        if not (logs_now(self.trainer) or self.trainer.is_last_batch):
            return
        values = dict(terms) if len(terms) > 1 else {}
        values |= self.objective.scalars()
        for method, module in self.methods.items():
            assert isinstance(module, MethodModule)
            values |= {f"{method}/{name}": value for name, value in module.scalars().items()}
        for name, value in values.items():
            self.log(f"train/{name}", value, batch_size=size)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """A step, then learnable values back into their bounds: forward and backward see the same value.

        What a checkpoint holds is then within them too.
        """
        super().optimizer_step(*args, **kwargs)
        self.objective.clamp()
        for method in self._method_modules():
            method.clamp()

    # Evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the embeddings of a batch: each image once, with all its captions."""
        with self.compilation.suspended(self):
            self._builder.add(batch, self.encode_images(batch), self.encode_texts(batch))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        """As in validation; the embeddings are then in `last_gallery`."""
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log `val/...`."""
        self._evaluate("val")

    def on_test_epoch_end(self) -> None:
        """Log `test/...`."""
        self._evaluate("test")

    def on_predict_epoch_end(self) -> None:
        """Merge the embeddings of all processes."""
        self._finish_gallery()

    def _finish_gallery(self) -> Gallery:
        self.last_gallery = self._builder.build(scorer_of(self))
        self._builder = GalleryBuilder(self.needs_tokens)
        return self.last_gallery

    def _evaluate(self, stage: str) -> None:
        gallery = self.last_gallery = self._finish_gallery().merged()
        if self.trainer.sanity_checking:
            return
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        positives = data.positives(stage) if data is not None else None
        found = evaluate(gallery, positives, self.device)
        self.metrics = {f"{stage}/{name}": value for name, value in found.items()}
        self.log_dict(self.metrics)  # every process has the whole gallery, hence the same figures

    # Further hooks of Lightning

    def configure_callbacks(self) -> list[pl.Callback]:
        """The methods' life cycles."""
        return list(self.method_callbacks)

    def configure_optimizers(self) -> Any:
        """AdamW over towers and heads, and the schedule, stepped with each batch."""
        groups = parameter_groups(self.named_parameters(), self._is_tower, self.optimizer_settings)
        return scheduled_adamw(groups, self.optimizer_settings, self.trainer, self.device)

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        """As Lightning does, and for a fused optimizer under bf16 too."""
        clip_gradients(self, *args, **kwargs)

    def _is_tower(self, name: str) -> bool:
        prefix = "backbone."
        return name.startswith(prefix) and self.backbone.is_tower(name.removeprefix(prefix))

    def describe(self) -> dict[str, Any]:
        """The arguments of an equal module, as plain types.

        `large_batch` and `compilation` are omitted: they change no result, and a resumed run may use others. So is
        `weights`: a checkpoint contains its own.
        """
        return {
            "backbone": self.backbone.describe(),
            "objective": self.objective.describe(),
            "methods": [method.describe() for method in self.method_callbacks],
            "optimizer": plain(self.optimizer_settings),
        }
