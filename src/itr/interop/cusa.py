"""The published checkpoints of CUSA: OpenAI's CLIP under `clip_model.`, plus heads and temperatures."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from itr.backbones import CLIP
from itr.errors import UserError, refusing
from itr.losses import SoftLoss
from itr.methods.cusa import CUSA
from itr.methods.cusa_temperatures import SIDES, Temperatures
from itr.module import RetrievalModule
from itr.objectives import InfoNCE
from itr.weights.matching import fill, without_wrappers
from itr.weights.reading import read_checkpoint

log = logging.getLogger(__name__)

_TOWER = "clip_model."
_SETTINGS = ("input_resolution", "context_length", "vocab_size")  # OpenAI's archives store them with the weights
_HEAD_WIDTH = 64  # of every CLIP that OpenAI published


def read_cusa_model(path: Path, text_heads: int | None = None) -> RetrievalModule:
    """The model of a CUSA checkpoint, which has the keys `model` and `config`.

    The tokenizer cleans captions like the authors' data sets, since their recalls were measured that way.

    Args:
        path: the file.
        text_heads: attention heads of the text tower, which shapes do not determine; by default one per 64 channels, at
            least two.

    Raises:
        UserError: it is not such a file, or weights are missing or unknown.
    """
    saved = load_cusa_file(path)
    with refusing(f"{path} is not a checkpoint of CUSA's authors"):
        return _built(saved, path, text_heads)


def _built(saved: Any, path: Path, text_heads: int | None) -> RetrievalModule:
    for key in ("model", "config"):
        if not isinstance(saved, dict) or key not in saved:
            raise UserError(f"{path} has no {key!r}: it is not a checkpoint of CUSA's authors")
    weights: dict[str, Tensor] = without_wrappers(saved["model"], {f"{_TOWER}ln_final.weight"})
    objective, method = from_loss_config(saved["config"]["loss_config"])
    tower = {name.removeprefix(_TOWER): value for name, value in weights.items() if name.startswith(_TOWER)}
    module = RetrievalModule(CLIP(config=clip_config(tower, text_heads), clean="words"), objective, [method])
    # Without InfoNCE there is no temperature, but our module always has an objective.
    state = {f"objective.{name}": value for name, value in objective.state_dict().items()}
    for name, value in weights.items():
        ours = _tower_name(name) if name.startswith(_TOWER) else parameter_name(name)
        if ours is not None:
            state[ours] = value.float()
    if saved["config"]["loss_config"]["contrastive"]["is_on"] and "tau" not in weights:
        raise UserError(f"{path}: the temperature 'tau' is missing")
    fill(module, state, str(path), "the settings in it")
    log.info("read %s: epoch %s, best %s", path, saved.get("epoch", "?"), saved.get("best", "?"))
    return module


def load_cusa_file(path: Path) -> Any:
    """Load a pickled checkpoint without running any code in it.

    Raises:
        UserError: the file does not exist, or has anything but tensors and plain values.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    return read_checkpoint(path)


def clip_config(weights: Mapping[str, Tensor], text_heads: int | None = None) -> dict[str, Any]:
    """The open_clip config of a CLIP from OpenAI's code, derived from the names and shapes of its weights.

    Raises:
        UserError: a required weight is missing.
    """
    try:
        width = weights["ln_final.weight"].shape[0]
        text = {
            "context_length": weights["positional_embedding"].shape[0],
            "vocab_size": weights["token_embedding.weight"].shape[0],
            "width": width,
            "heads": text_heads or max(2, width // _HEAD_WIDTH),
            "layers": _count(weights, "transformer.resblocks."),
        }
        vision = _vit_config(weights) if "visual.proj" in weights else _resnet_config(weights)
        embed_dim = weights["text_projection"].shape[1]
    except KeyError as error:
        raise UserError(f"the checkpoint does not contain OpenAI's CLIP: weight {error} is missing") from error
    # OpenAI's weights were trained with the quick approximation of GELU.
    return {"embed_dim": embed_dim, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}


def _vit_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    patches = weights["visual.conv1.weight"]
    side = _side(weights["visual.positional_embedding"])
    return {
        "image_size": side * patches.shape[-1],
        "patch_size": patches.shape[-1],
        "width": patches.shape[0],
        "head_width": patches.shape[0] // max(1, patches.shape[0] // _HEAD_WIDTH),
        "layers": _count(weights, "visual.transformer.resblocks."),
    }


def _resnet_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "image_size": 32 * _side(weights["visual.attnpool.positional_embedding"]),
        "width": weights["visual.layer1.0.conv1.weight"].shape[0],
        "layers": [_count(weights, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)],
    }


def _side(positions: Tensor) -> int:
    return math.isqrt(positions.shape[0] - 1)


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)})


def _tower_name(name: str) -> str | None:
    inner = name.removeprefix(_TOWER)
    return None if inner == "logit_scale" or inner in _SETTINGS else f"backbone.model.{inner}"


def parameter_name(name: str) -> str:
    """The name in a `RetrievalModule` of one of the authors' heads or temperatures."""
    if name == "tau":
        return "objective.temperature.value"
    for use in ("cross", "uni"):
        for side in SIDES:
            for layer, theirs in enumerate((f"ln_{use}_{side}_projection.", f"{use}_{side}_projection.")):
                if name.startswith(theirs):
                    return f"methods.cusa.heads.{use}_{side}.{layer}.{name.removeprefix(theirs)}"
    if "tau" not in name:
        raise UserError(f"the checkpoint has an unknown weight {name!r}")
    return f"methods.cusa.temperatures.{name.replace('_the_softlabel_tau', '_soft').replace('_tau', '')}.value"


def from_loss_config(config: Mapping[str, Any]) -> tuple[InfoNCE, CUSA]:
    """Objective and method of the authors' `loss_config`.

    We have no rate for InfoNCE: a rate other than 1 is divided into the rates of CSA and USA, which gives the same
    gradients up to that factor.
    """
    contrastive, cross, uni = (config[name] for name in ("contrastive", "cross_softlabel", "uni_softlabel"))
    on = bool(contrastive["is_on"])
    rate = float(contrastive["rate"]) if on and contrastive["rate"] else 1.0
    objective = InfoNCE(
        contrastive["tau"],
        (contrastive["tau_min"], contrastive["tau_max"]),
        learnable_temperature=not contrastive["is_block_tau"],
        scale="element_mean" if contrastive["contrastive_loss_mode"] == "mean" else "standard",
    )
    joint = cross["cross_softlabel_mode"] != "each"  # the authors then use one temperature for both directions
    method = CUSA(
        alpha=cross["rate"] / rate if cross["is_on"] else 0.0,
        beta=uni["rate"] / rate if uni["is_on"] else 0.0,
        targets=cross["cross_softlabel_mode"],
        loss=_loss(cross),
        uni_loss=_loss(uni),
        cross_head=on or bool(cross["is_on"]),
        cross_temperature=_temperatures(cross, "", _sharing(cross, "", joint)),
        cross_soft_temperature=_temperatures(cross, "softlabel_", _sharing(cross, "softlabel_", joint)),
        uni_temperature=_temperatures(uni, "", _sharing(uni, "")),
        uni_soft_temperature=_temperatures(uni, "softlabel_", _sharing(uni, "softlabel_")),
    )
    return objective, method


def _loss(section: Mapping[str, Any]) -> SoftLoss:
    if section["use_loss"] == "kl":
        return "kl"
    return "cross_entropy_element_mean" if section["contrastive_loss_mode"] == "mean" else "cross_entropy"


def _sharing(section: Mapping[str, Any], kind: str, joint: bool = False) -> Literal["shared", "separate", "cross"]:
    if section.get(f"use_cross_softlabel_same_{kind}tau"):
        return "cross"
    return "shared" if joint or section[f"use_same_{kind}tau"] else "separate"


def _temperatures(
    section: Mapping[str, Any], kind: str, sharing: Literal["shared", "separate", "cross"]
) -> Temperatures:
    """Temperatures of a section; if the two sides differ, both get the mean of their settings."""
    the = f"the_{kind}" if kind else ""
    initial, low, high = (
        sum(float(section[f"{the}{side}_tau{end}"]) for side in SIDES) / len(SIDES) for end in ("", "_min", "_max")
    )
    return Temperatures(initial, (low, high), not section[f"is_block_{kind}tau"], sharing)
