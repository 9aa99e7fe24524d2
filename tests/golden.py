"""`python tests/golden.py DIR`: compare our code with numbers that the authors' code gave, fixture by fixture.

A fixture is a `.safetensors` file of inputs (`in.*`), weights (`param.*`), outputs (`out.*`) and gradients (`grad.*`);
its name's prefix says what it is of. A line a fixture, `name: max error`; status 1 if one is out of tolerance.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors import safe_open
from torch import Tensor, nn

from itr.backbones import Backbone
from itr.backbones.pooling import GPO
from itr.interop.cusa import from_loss_config, parameter_name, read_cusa_model
from itr.losses import triplet
from itr.objectives import InfoNCE
from itr.types import Encoded, Pairs, Scores

Result = tuple[float, bool]
EXACT = (1e-7, 1e-6)  # absolute and relative tolerance for losses and gradients in float64
WHOLE = (1e-4, 0.0)  # for whole models in float32


class Comparison:
    """Collects the largest error, and whether all errors are within the tolerance."""

    def __init__(self, absolute: float, relative: float) -> None:
        self.absolute, self.relative = absolute, relative
        self.worst, self.within = 0.0, True

    def add(self, actual: Tensor, expected: Tensor) -> None:
        assert actual.shape == expected.shape, f"shape {list(actual.shape)} instead of {list(expected.shape)}"
        if not expected.numel():
            return
        expected = expected.double()
        error = (actual.detach().double() - expected).abs().nan_to_num(nan=torch.inf)
        self.worst = max(self.worst, error.max().item())
        self.within &= bool((error <= self.absolute + self.relative * expected.abs()).all())

    @property
    def result(self) -> Result:
        return self.worst, self.within


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def section(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def pooled_only(pooled: Tensor) -> Encoded:
    """Embeddings without tokens."""
    empty = pooled.new_zeros(len(pooled), 0, pooled.shape[1])
    return Encoded(pooled, empty, empty[..., 0].bool())


def check_cusa(path: Path) -> Result:
    """The three losses of CUSA, multiplied by their weights, from features of backbone and teachers."""
    tensors, meta = load(path)
    config = json.loads(meta["loss_config"])
    features = {side: tensors[f"in.{side}_features"].double().requires_grad_() for side in ("image", "text")}
    objective, method = from_loss_config(config)
    module = method.build(SimpleNamespace(dim=features["image"].shape[1]))
    model = nn.ModuleDict({"objective": objective, "methods": nn.ModuleDict({"cusa": module})}).double()
    ours = {parameter_name(name): value.double() for name, value in section(tensors, "param.").items()}
    fixed = {"objective.temperature.value": objective.temperature.value.detach()}  # absent if InfoNCE is off
    model.load_state_dict(fixed | ours if not config["contrastive"]["is_on"] else ours)
    objective.clamp()  # the authors clamp before each forward pass
    module.clamp()

    image, text = module.embed_image(pooled_only(features["image"])), module.embed_text(pooled_only(features["text"]))
    ids = tensors.get("in.image_index", torch.arange(len(image))).flatten()
    scores = Scores.whole(Backbone.similarity(None, image, text), ids[:, None] == ids[None, :])
    extra = {name: tensors[f"in.{name}"] for name in ("teacher_image", "teacher_text")}
    pairs = Pairs(image=image, text=text, image_id=ids, scores=scores, extra=extra)
    contrastive = objective(scores, 0.0) + rounding(objective, scores)
    losses = {"contrastive": config["contrastive"]["is_on"] * contrastive}
    losses |= {"csa": torch.zeros(()), "usa": torch.zeros(())} | module.losses(pairs)
    for name, part in (("contrastive", "contrastive"), ("csa", "cross_softlabel"), ("usa", "uni_softlabel")):
        losses[name] = config[part]["rate"] * losses[name]
    total = sum(losses.values())
    total.backward()

    found = {f"out.loss_{name}": value for name, value in losses.items()} | {"out.loss": total}
    for side, encoded in (("image", image), ("text", text)):
        unimodal = encoded.pooled if encoded.unimodal is None else encoded.unimodal
        found |= {f"out.cross_{side}": encoded.pooled, f"out.uni_{side}": unimodal}
        found[f"grad.{side}_features"] = features[side].grad
    named = dict(model.named_parameters())
    for name in section(tensors, "param."):
        gradient = named[parameter_name(name)].grad
        if gradient is not None and f"grad.param.{name}" not in tensors:
            assert not gradient.any(), f"{name} has a gradient and should have none"
        found[f"grad.param.{name}"] = torch.zeros_like(tensors[f"param.{name}"]) if gradient is None else gradient
    return compare_all(found, tensors, EXACT)


def rounding(objective: InfoNCE, scores: Scores) -> Tensor:
    """The error in InfoNCE due to the authors' float32 targets: 1e-8, but divided by tau in the gradients."""
    mass = scores.positives.float()
    rounded, exact = (values / values.sum(dim=1, keepdim=True) for values in (mass, mass.double()))
    logits = scores.image_to_text / objective.temperature()
    ways = [((exact - rounded) * torch.log_softmax(rows, dim=1)).sum(dim=1).mean() for rows in (logits, logits.T)]
    loss = torch.stack(ways).mean()
    return loss / scores.size if objective.scale == "element_mean" else loss


def check_cusa_clip(path: Path) -> Result:
    """The four embeddings of a converted checkpoint, and its token ids."""
    tensors, meta = load(path)
    heads = json.loads(meta.get("clip", "{}")).get("text_heads")
    model = read_cusa_model(path.with_name(f"{path.stem}_checkpoint.pth"), heads).eval()
    texts = json.loads(meta["texts"])
    ids, expected = model.backbone.tokenizer(texts).ids, tensors["in.token_ids"]
    assert torch.equal(ids, expected[:, : ids.shape[1]]), "other token ids"
    assert not expected[:, ids.shape[1] :].any(), "tokens beyond ours"
    model.backbone.normalise = lambda pixels: pixels  # they already are
    with torch.no_grad():
        image, text = model.embed_image(model.backbone.encode_image(tensors["in.pixels"])), model.encode_text(texts)
    found = {}
    for side, encoded in (("image", image), ("text", text)):
        unimodal = encoded.pooled if encoded.unimodal is None else encoded.unimodal
        found |= {f"out.cross_{side}": encoded.pooled, f"out.uni_{side}": unimodal}
    return compare_all(found, tensors, WHOLE)


def check_gpo(path: Path) -> Result:
    """Generalized pooling; gradients are those of sum(pooled x [1..D])."""
    tensors, _ = load(path)
    weights = section(tensors, "param.")
    gates, position_dim = weights["gru.weight_ih_l0"].shape
    gpo = GPO(position_dim, gates // 3).double()
    gpo.load_state_dict({name: value.double() for name, value in weights.items()})
    features, lengths = tensors["in.features"].double().requires_grad_(), tensors["in.lengths"]
    pooled = gpo(features, torch.arange(features.shape[1]) < lengths[:, None])
    (pooled * torch.arange(1, features.shape[2] + 1)).sum().backward()
    found = {"out.pooled": pooled, "out.weights": gpo.weights(lengths, features.shape[1])}
    found |= {f"grad.param.{name}": parameter.grad for name, parameter in gpo.named_parameters()}
    return compare_all(found | {"grad.features": features.grad}, tensors, EXACT)


def check_triplet(path: Path) -> Result:
    """Hinge triplet loss with all negatives (`mean`) and with the hardest (`max`)."""
    tensors, meta = load(path)
    ids, found = tensors["in.image_index"].flatten(), {}
    for name, negatives in (("mean", "all"), ("max", "hardest")):
        image, text = (tensors[f"in.{side}"].double().clone().requires_grad_() for side in ("image", "text"))
        similarity = cosine(image, text)
        scores = Scores.whole(similarity, ids[:, None] == ids[None, :])
        loss = triplet(scores, float(meta.get("margin", 0.2)), negatives)
        loss.backward()
        found |= {f"out.loss_{name}": loss, f"grad.image_{name}": image.grad, f"grad.text_{name}": text.grad}
    return compare_all(found, tensors, EXACT)


def cosine(image: Tensor, text: Tensor) -> Tensor:
    """Cosines; if the rows have unit length already, gradients are those of a dot product."""
    if all(torch.allclose(rows.norm(dim=1), torch.ones(len(rows)).to(rows)) for rows in (image, text)):
        return image @ text.T
    return Backbone.similarity(None, pooled_only(image), pooled_only(text))


def compare_all(found: dict[str, Tensor], tensors: dict[str, Tensor], tolerance: tuple[float, float]) -> Result:
    """Compare every output and gradient of the fixture; each must have been computed."""
    comparison = Comparison(*tolerance)
    for name, expected in tensors.items():
        if name.startswith(("out.", "grad.")):
            comparison.add(found[name], expected)
    return comparison.result


def check_distill(path: Path) -> Result:
    import golden_d2s

    return golden_d2s.check_distill(path)


def check_d2s(path: Path) -> Result:
    import golden_d2s

    return golden_d2s.check_d2s(path)


CHECKS: dict[str, Callable[[Path], Result]] = {
    "cusa_clip": check_cusa_clip,
    **dict.fromkeys(("cusa_each", "cusa_add", "cusa_dot", "cusa_usa", "cusa_csa"), check_cusa),
    "gpo": check_gpo,
    "triplet": check_triplet,
    "distill": check_distill,
    "d2s_": check_d2s,
}


def check(path: Path) -> tuple[str, bool]:
    """A line that describes the result of one fixture, and whether it is within tolerance."""
    known = next((function for prefix, function in CHECKS.items() if path.stem.startswith(prefix)), None)
    if known is None:
        return f"{path.stem}: unknown prefix; it must be one of {', '.join(CHECKS)}", False
    try:
        error, within = known(path)
    except Exception as problem:  # one damaged fixture must not hide the others
        return f"{path.stem}: {type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}", False
    return f"{path.stem}: {error:.3g}" + ("" if within else "  (out of tolerance)"), within


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: python tests/golden.py DIR, a folder of fixtures", file=sys.stderr)
        return 2
    paths = sorted(Path(arguments[0]).glob("*.safetensors"))
    if not paths:
        print(f"{arguments[0]} holds no fixture (*.safetensors)", file=sys.stderr)
        return 1
    failed = False
    for path in paths:
        line, within = check(path)
        print(line, flush=True)
        failed |= not within
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
