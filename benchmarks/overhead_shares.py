"""The cost that a method adds to a step: its parts timed alone, and its operations counted at the papers' sizes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from itr.backbones import CLIP, VSE, Backbone
from itr.methods import CUSA, D2S, MethodModule
from itr.types import Encoded, Pairs, Tokens, score_rows
from measuring import device, seconds
from overhead_parts import Step, bf16

WORDS = 14  # mean tokens of a COCO caption
DENSE_WORDS = 130  # tokens of the dense captions that D2S was published with
TEACHER = {"layers": 12, "width": 768}  # all-mpnet-base-v2, the authors' text teacher


def added(step: Step, name: str, times: int = 5) -> dict[str, float]:
    """Return the median seconds of a method's own parts, each timed alone."""
    method = step.module.methods[name]
    assert isinstance(method, MethodModule)
    with torch.no_grad(), torch.autocast(device(), torch.bfloat16, enabled=bf16()):
        backbone = step.module.backbone
        image, text = backbone.encode_image(step.batch.image), backbone.encode_text(step.batch.text)
        extra = method.prepare(step.batch)
    pairs = _pairs(image, text, extra)
    parts: dict[str, Callable[[], object]] = {
        "reading": step.read,
        "teacher": lambda: _autocast(lambda: method.prepare(step.batch)),
        "heads or decoder": lambda: _heads(method, image, text),
        "losses": lambda: _losses(method, pairs),
    }
    own = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(own, 0.0, fused=True)
    for parameter in own:
        parameter.grad = torch.zeros_like(parameter)
    parts["update"] = optimizer.step
    found = {part: statistics.median(seconds(work) for _ in range(times)) for part, work in parts.items()}
    optimizer.zero_grad()
    return found


def _autocast(work: Callable[[], Any]) -> Any:
    with torch.autocast(device(), torch.bfloat16, enabled=bf16()):
        return work()


def _pairs(image: Encoded, text: Encoded, extra: dict[str, Tensor]) -> Pairs:
    image, text = (side.map(lambda t: t.float() if t.is_floating_point() else t) for side in (image, text))
    ids = torch.arange(len(image), device=image.pooled.device)
    both = [replace(side, pooled=side.pooled.requires_grad_()).without_tokens() for side in (image, text)]

    def cosine(image: Encoded, text: Encoded) -> Tensor:
        return torch.nn.functional.normalize(image.pooled) @ torch.nn.functional.normalize(text.pooled).T

    return Pairs(*both, ids, score_rows(cosine, *both, ids, slice(0, len(ids))), extra)


def _heads(method: MethodModule, image: Encoded, text: Encoded) -> None:
    found = _autocast(lambda: (method.embed_image(image), method.embed_text(text)))
    total = sum(side.pooled.float().sum() + side.within.float().sum() for side in found)
    if total.requires_grad:
        total.backward()


def _losses(method: MethodModule, pairs: Pairs) -> None:
    sum(method.losses(pairs).values()).backward(retain_graph=True)  # type: ignore[union-attr]


def real_shares() -> list[dict[str, float]]:
    """Return CUSA's operations as shares of a ViT-B/32 step without it, counted on a few pairs."""
    module = CLIP(model="ViT-B-32")
    pair = _pair(module)
    teacher = 2 * WORDS * 12 * TEACHER["layers"] * TEACHER["width"] ** 2  # only products with weights
    return [
        {
            "batch": batch,
            "CUSA": _cusa(module, batch) / (batch * pair),
            "a text teacher like mpnet-base": teacher / pair,
        }
        for batch in (128, 1024)
    ]


def _cusa(backbone: CLIP, batch: int) -> float:
    """Count the operations of CUSA's heads and losses."""
    method = CUSA().build(backbone)
    side = Encoded(torch.randn(batch, 512), torch.zeros(batch, 0, 512), torch.zeros(batch, 0, dtype=torch.bool))
    extra = {"teacher_image": torch.randn(batch, 512), "teacher_text": torch.randn(batch, 768)}
    with FlopCounterMode(display=False) as counter:
        image, text = method.embed_image(side), method.embed_text(side)
        scores = score_rows(backbone.similarity, image, text, torch.arange(batch), slice(0, batch))
        sum(method.losses(Pairs(image, text, torch.arange(batch), scores, extra)).values()).backward()  # type: ignore[union-attr]
    return float(counter.get_total_flops())


def real_shares_of_d2s() -> dict[str, float]:
    """Return D2S's operations as shares of a step of ViT-B/16 and BERT at 224 pixels without it."""
    base = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    vision = {"model_type": "vit", "image_size": 224, "patch_size": 16, **base}
    module = VSE(vision_config=vision, text_config={"model_type": "bert", "pad_token_id": None, **base}, dim=512)
    pair = _pair(module)
    decoder = D2S(weight=0).build(module)
    words = Encoded(torch.randn(2, 512), torch.randn(2, WORDS, 512), torch.ones(2, WORDS, dtype=torch.bool))
    with FlopCounterMode(display=False) as prompts:
        decoder.embed_text(words).pooled.sum().backward()
    with FlopCounterMode(display=False) as dense, torch.no_grad():
        module.encode_text(_words(DENSE_WORDS))
    return {
        "prompt decoder": prompts.get_total_flops() / 2 / pair,
        "frozen teacher on dense captions": dense.get_total_flops() / 2 / pair,
    }


def _words(length: int) -> Tokens:
    return Tokens(torch.ones(2, length, dtype=torch.int64), torch.ones(2, length, dtype=torch.bool))


def _pair(module: Backbone) -> float:
    """Count the operations of the towers' forward and backward pass for one pair."""
    image = torch.zeros(2, 3, module.image_spec.size, module.image_spec.size, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        found = module.encode_image(image).pooled.sum() + module.encode_text(_words(WORDS)).pooled.sum()
        found.backward()
    return counter.get_total_flops() / 2
