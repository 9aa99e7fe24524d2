"""Small models of every objective and method, a batch, and their gradients, for the tests of exactness."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from itr.backbones import VSE
from itr.methods import CUSA, D2S, Method
from itr.module import RetrievalModule
from itr.objectives import InfoNCE, Objective, Sigmoid, Triplet
from itr.training.large_batch import LargeBatch
from itr.types import Batch, Tokens
from late_interaction import LateInteraction
from tiny import copy_of
from wide import Uncertain

BATCH = 12
SMALL_D2S = {"num_prompts": 2, "depth": 1, "heads": 2}
Parts = tuple[Objective, list[Method], type[VSE]]
MODELS: dict[str, Callable[[], Parts]] = {
    "info_nce": lambda: (InfoNCE(), [], VSE),
    "info_nce_element_mean": lambda: (InfoNCE(scale="element_mean"), [], VSE),
    "triplet_all": lambda: (Triplet(hardest_after=1), [], VSE),
    "triplet_hardest": lambda: (Triplet(hardest_after=0), [], VSE),
    "sigmoid": lambda: (Sigmoid(), [], VSE),
    **{
        f"cusa_{goals}_{loss}": lambda goals=goals, loss=loss: (InfoNCE(), [CUSA(targets=goals, loss=loss)], VSE)
        for goals in ("each", "add", "dot")
        for loss in ("kl", "cross_entropy", "cross_entropy_element_mean")
    },
    **{
        f"d2s_{kind}": lambda kind=kind: (InfoNCE(), [D2S(**SMALL_D2S, distillation=kind)], VSE)
        for kind in ("cosine", "l1", "l2")
    },
    "d2s_cached": lambda: (InfoNCE(), [D2S(**SMALL_D2S, cached=True)], VSE),
    "both": lambda: (InfoNCE(), [CUSA(targets="dot"), D2S(**SMALL_D2S)], VSE),
    "uncertain": lambda: (InfoNCE(), [Uncertain()], VSE),
    "tokens": lambda: (Triplet(hardest_after=1), [], LateInteraction),
    "tokens_both": lambda: (InfoNCE(), [CUSA(cross_head=False), D2S(**SMALL_D2S)], LateInteraction),
}
VARIANTS = {
    "gathered": LargeBatch(),
    "local": LargeBatch(local_loss=True),
    "chunks": LargeBatch(loss_chunk=5),
    "local chunks": LargeBatch(local_loss=True, loss_chunk=4),
    "parts": LargeBatch(gradient_cache=5),
    "everything": LargeBatch(local_loss=True, loss_chunk=3, gradient_cache=3),
}
GRID = [(model, variant) for model in MODELS for variant in VARIANTS]
OFTEN = [(model, "gathered") for model in ("info_nce", "triplet_all", "sigmoid", "both")]
OFTEN += [(model, "everything") for model in ("info_nce", "triplet_hardest", "sigmoid", "both", "tokens", "uncertain")]


class Loss(nn.Module):
    """The training loss as a forward pass, which is what DDP wraps, and the loss that is logged."""

    def __init__(self, module: RetrievalModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        terms = self.module.loss_terms(batch, 0.0)
        whole = self.module.large_batch.whole(terms)
        return torch.stack(list(terms.values())).sum(), torch.stack(list(whole.values()))


def make_module(model: str, large_batch: LargeBatch, dropout: float = 0.0) -> RetrievalModule:
    objective, methods, backbone = MODELS[model]()
    towers = copy_of(make_towers(backbone, dropout))
    torch.manual_seed(0)
    return RetrievalModule(towers, objective, methods, large_batch=large_batch).double()


@functools.cache
def make_towers(backbone: type[VSE], dropout: float) -> VSE:
    torch.manual_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    drop = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    pooling = {"image_pooling": "mean", "text_pooling": "mean"} if backbone.needs_tokens else {}  # nothing unused
    return backbone(
        vision_config={"model_type": "vit", "image_size": 16, "patch_size": 8, **size, **drop},
        text_config={"model_type": "bert", "pad_token_id": None, **size, **drop},
        dim=8,
        visual_token_drop=dropout,
        word_mask=dropout,
        word_dropout=dropout,
        **pooling,
    )


def make_batch(rows: slice) -> Batch:
    generator = torch.Generator().manual_seed(1)
    image_id = torch.randint(8, (BATCH,), generator=generator)  # several rows share an image
    lengths = torch.randint(3, 7, (BATCH, 1), generator=generator)
    dense = torch.randint(5, 99, (BATCH, 9), generator=generator)[rows]
    wide = {"generator": generator, "dtype": torch.float64}
    teachers = [torch.randn(BATCH, width, **wide)[rows] for width in (4, 3, 8)]
    return Batch(
        image=torch.randint(256, (BATCH, 3, 16, 16), dtype=torch.uint8, generator=generator)[rows],
        image_id=image_id[rows],
        text=Tokens(torch.randint(5, 99, (BATCH, 7), generator=generator)[rows], (torch.arange(7) < lengths)[rows]),
        text_id=torch.arange(BATCH)[rows],
        image_index=torch.arange(BATCH)[: rows.stop - rows.start],
        image_extra={
            "teacher_image": teachers[0], "dense": Tokens(dense, dense > 0), "teacher_dense": teachers[2],
        },
        text_extra={"teacher_text": teachers[1]},
    )  # fmt: skip


def gradients(module: RetrievalModule, batch: Batch, parallel: bool = False) -> dict[str, torch.Tensor]:
    loss = Loss(module)
    model = DistributedDataParallel(loss) if parallel else loss  # kept until after backward, or nothing is averaged
    value, whole = model(batch)
    value.backward()
    found = {key: parameter.grad for key, parameter in loss.named_parameters() if parameter.requires_grad}
    assert not [key for key, gradient in found.items() if gradient is None], "DDP averages nothing that goes unused"
    return {"loss": whole, **found}


@functools.cache
def expected(model: str) -> dict[str, torch.Tensor]:
    """Loss and gradients of one process on the whole batch, all at once."""
    return gradients(make_module(model, LargeBatch()), make_batch(slice(0, BATCH)))


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], case: object) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        close = torch.allclose(found[key], value, rtol=1e-9, atol=1e-11)
        assert close, f"{case}, {key}: off by {(found[key] - value).abs().max():.3g}"
