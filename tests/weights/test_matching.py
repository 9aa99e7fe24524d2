"""Names that wrappers add are removed; what does not fit is named, and nothing of it is loaded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from itr.errors import UserError, quoted
from itr.weights.matching import fill, surplus_layers, without_wrappers

PREFIXES = [
    "",
    "module.",
    "_orig_mod.",
    "model.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.backbone.",
    "a.b.c.",
]


def tower() -> nn.Module:
    """Two layers, one of them named like a wrapper."""
    return nn.ModuleDict({"model": nn.Linear(3, 2), "norm": nn.BatchNorm1d(2)})


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_that_all_names_share_are_removed(prefix: str) -> None:
    source, target = tower(), tower()

    fill(target, {f"{prefix}{name}": value for name, value in source.state_dict().items()}, "file")

    assert all(torch.equal(value, target.state_dict()[name]) for name, value in source.state_dict().items())


def test_wrappers_of_inner_modules_are_removed() -> None:
    names = ["module.model._orig_mod.weight", "module.norm._fsdp_wrapped_module.weight"]

    assert list(without_wrappers(dict.fromkeys(names), tower().state_dict())) == ["model.weight", "norm.weight"]


def test_a_prefix_that_is_a_name_of_the_module_stays() -> None:
    module = nn.ModuleDict({"model": nn.Linear(3, 2)})

    assert list(without_wrappers({"model.weight": 1, "model.bias": 2}, module.state_dict())) == [
        "model.weight",
        "model.bias",
    ]


def changed(kind: str) -> dict[str, Tensor]:
    weights = dict(tower().state_dict())
    if kind == "missing":
        del weights["norm.bias"]
    elif kind == "unexpected":
        weights["head.weight"] = torch.zeros(1)
    elif kind == "shape":
        weights["model.weight"] = torch.zeros(2, 4)
    else:
        weights = {f"other.{name}x": value for name, value in weights.items()}
    return weights


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"missing: norm\.bias"),
        ("unexpected", r"unexpected: head\.weight"),
        ("shape", r"of another shape: model\.weight \(\[2, 4\] instead of \[2, 3\]\)"),
        ("all", r"missing: model\.bias, model\.weight, norm\.bias and 3 more; unexpected: other.*and 4 more"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(kind: str, message: str) -> None:
    target = tower()
    before = {name: value.clone() for name, value in target.state_dict().items()}

    with pytest.raises(UserError, match=f"the weights in file do not match the model; {message}"):
        fill(target, changed(kind), "file")
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_only_what_is_used_must_be_there() -> None:
    kept = fill(tower(), changed("missing"), "file", used=lambda: {"model.weight"})

    assert kept.missing == ("norm.bias",)


def test_counters_may_be_missing() -> None:
    weights = {n: v for n, v in tower().state_dict().items() if "num_batches" not in n}

    assert fill(tower(), weights, "file").missing == ()


def test_further_layers_are_recognized() -> None:
    names = ["blocks.2.weight", "head.weight", "blocks.x.weight"]

    assert surplus_layers(names, ["blocks.0.weight", "blocks.1.weight", "norm.weight"]) == ["blocks.2.weight"]


def test_the_reason_of_an_error_is_quoted_without_its_heading_and_in_bounds() -> None:
    assert quoted(RuntimeError("Error(s) in loading:\n\t size mismatch for a\n\t size mismatch for b")) == (
        "Error(s) in loading: size mismatch for a"
    )
    assert quoted(ValueError("no file\nmore about it")) == "no file"
    assert quoted(KeyError()) == "KeyError"
    advice = (
        "Weights only load failed. Set weights_only=False ...\n\tWeightsUnpickler error: Unsupported global: GLOBAL os"
    )
    assert quoted(ValueError(f"{advice}. Please use `torch.serialization.x`")) == "Unsupported global: GLOBAL os."
    assert len(quoted(ValueError("x" * 10_000))) < 400


def test_something_else_than_a_tensor_does_not_fit():
    module = nn.Linear(2, 3)
    weights = {"weight": None, "bias": torch.zeros(3)}
    with pytest.raises(UserError, match=r"of another shape: weight \(NoneType instead of \[3, 2\]\)"):
        fill(module, weights, "w.pt")
