"""Compare with the code of D2S-VSE's authors: distillation losses, and whole models after the second stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from itr.interop import d2s as official
from itr.losses.distillation import DistillationKind, distillation
from itr.losses.triplet import triplet
from itr.methods.d2s_module import D2SModule
from itr.module import RetrievalModule
from itr.types import Scores, Tokens

KINDS: dict[str, DistillationKind] = {"cos": "cosine", "cosine": "cosine", "l1": "l1", "l2": "l2"}


class Worst:
    """Keeps the largest error, and whether all errors were within tolerance."""

    def __init__(self, absolute: float, relative: float) -> None:
        self.absolute, self.relative = absolute, relative
        self.error, self.within, self.compared = 0.0, True, 0

    def compare(self, found: Tensor, expected: Tensor) -> None:
        """Compare one more pair of tensors."""
        if found.shape != expected.shape:
            raise ValueError(f"shape {list(found.shape)} instead of {list(expected.shape)}")
        found, expected = found.detach().double(), expected.double()
        difference = (found - expected).abs()
        allowed = self.absolute + self.relative * expected.abs()
        self.error = max(self.error, difference.max().item()) if difference.isfinite().all() else float("nan")
        self.within = self.within and bool((difference <= allowed).all())
        self.compared += 1

    def result(self) -> tuple[float, bool]:
        """The largest error, and whether everything was within tolerance."""
        return self.error, self.within and self.compared > 0


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a fixture."""
    with safe_open(str(path), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def check_distill(path: Path) -> tuple[float, bool]:
    """Largest error of losses and student gradients, and whether it is within 1e-7 absolute + 1e-6 relative."""
    tensors, _ = read(path)
    worst = Worst(1e-7, 1e-6)
    for name, expected in tensors.items():
        if not name.startswith("out.loss_"):
            continue
        kind = name.removeprefix("out.loss_")
        student = tensors["in.student"].clone().requires_grad_()
        teacher = tensors["in.teacher"].clone().requires_grad_()
        loss = distillation(student, teacher, KINDS[kind])
        loss.backward()
        worst.compare(loss, expected)
        assert teacher.grad is None
        assert student.grad is not None
        if f"grad.student_{kind}" in tensors:
            worst.compare(student.grad, tensors[f"grad.student_{kind}"])
    return worst.result()


def check_d2s(path: Path) -> tuple[float, bool]:
    """Largest error of a converted model's embeddings and intermediate outputs, and whether it is within 1e-4."""
    tensors, metadata = read(path)
    configs = {name: _config(metadata[name]) if name in metadata else None for name in ("vision", "text")}
    checkpoint = path.with_name(f"{path.stem}.stage2.pth")
    module = official.read_d2s_model(checkpoint, configs["vision"], configs["text"])
    _, options = official.load_d2s_file(checkpoint)
    worst = Worst(1e-4, 0.0)
    with torch.no_grad():
        found = embed(module, tensors)
        for name, value in found.items():
            if f"out.{name}" in tensors:
                worst.compare(value, tensors[f"out.{name}"])
        if "out.loss" in tensors and options.get("loss", "vse") == "vse":
            worst.compare(training_loss(module, found, options), tensors["out.loss"])
    return worst.result()


def embed(module: RetrievalModule, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The outputs by the names of the authors' fixture; the two embeddings have unit length."""
    backbone: Any = module.backbone
    image = backbone.encode_pixels(tensors["in.pixels"])
    text = backbone.encode_text(_tokens(tensors["in.input_ids"]))
    found = {
        "image_embedding": F.normalize(image.pooled, dim=-1),
        "text_pooled": text.pooled,
        "text_tokens": text.tokens,
    }
    if "d2s" not in module.methods:
        return {**found, "text_embedding": F.normalize(text.pooled, dim=-1)}
    method = module.methods["d2s"]
    assert isinstance(method, D2SModule)
    found["text_embedding"] = F.normalize(method.embed_text(text).pooled, dim=-1)
    found["prompt"] = method.decoder(text.tokens, text.mask)
    if method.teacher is not None and "in.dense_input_ids" in tensors:
        found["dense_text_pooled"] = method.teacher(_tokens(tensors["in.dense_input_ids"]))
    return found


def training_loss(module: RetrievalModule, found: dict[str, Tensor], options: dict[str, Any]) -> Tensor:
    """The authors' training loss, in which the prompt output is added without normalization."""
    method: Any = module.methods["d2s"]
    text = found["text_pooled"] + found["prompt"] if method.residual else found["prompt"]
    similarity = found["image_embedding"] @ F.normalize(text, dim=-1).T
    negatives = "hardest" if options.get("max_violation", True) else "all"
    positives = torch.eye(len(similarity), dtype=torch.bool)
    loss = triplet(Scores.whole(similarity, positives), float(options.get("margin", 0.2)), negatives)
    if "dense_text_pooled" in found:
        loss = loss + distillation(text, found["dense_text_pooled"], method.distillation)
    return loss


def _tokens(ids: Tensor) -> Tokens:
    return Tokens(ids, ids != 0)


def _config(text: str) -> dict[str, Any]:
    """A transformers config without the release-specific entries."""
    from transformers import AutoConfig

    config: dict[str, Any] = json.loads(text)
    default: Any = AutoConfig.for_model(config["model_type"])
    known = {*default.to_dict(), *default.attribute_map, "model_type"}
    return {name: value for name, value in config.items() if name in known}
