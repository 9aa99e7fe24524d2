"""Towers of transformers: configs checked, weights loaded in float32, and nothing left that takes no part."""

from __future__ import annotations

import copy
import difflib
import inspect
import logging
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from itr.backbones.attention import ask_nothing
from itr.backbones.base import ImageSpec
from itr.backbones.tokenizers import first_line
from itr.component import plain
from itr.errors import UserError
from itr.private_api.transformers import NAME_KEY

log = logging.getLogger(__name__)

Modality = Literal["vision", "text"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# What a config carries beside the architecture; the first two tie it to a machine and a version.
_NOT_ARCHITECTURE = {
    NAME_KEY, "transformers_version", "architectures", "dtype", "id2label", "label2id", "problem_type",
    "return_dict", "output_attentions", "output_hidden_states",
}  # fmt: skip


def make_tower(modality: Modality, name: str | None, config: dict[str, Any] | None) -> nn.Module:
    """A tower with pretrained weights where a name is given, with random weights where a config is.

    Raises:
        UserError: the name can't be had, or the config isn't one.
    """
    tower = _new_tower(modality, config or {}) if name is None else _pretrained_tower(modality, name)
    ask_nothing(tower)
    return tower


def describe_tower(tower: nn.Module) -> dict[str, Any]:
    """The config from which `make_tower` builds the same architecture, in plain types."""
    config = config_of(tower)
    known = _known_keys(config.model_type)
    described = {key: value for key, value in config.to_dict().items() if key in known - _NOT_ARCHITECTURE}
    return {"model_type": config.model_type, **plain(described)}


def prepare_tower(tower: nn.Module, inputs: dict[str, Any]) -> int:
    """Freeze the parameters that the token features don't depend on, and tell the width of these features.

    Heads that the tower keeps for other uses (a pooler, the norm behind it) would never get a gradient, which
    distributed training doesn't forgive. They are found by one differentiation without numbers, on the meta device.

    Raises:
        UserError: the tower can't process these inputs.
    """

    def run(module: nn.Module, device: torch.device) -> Tensor:
        return token_features(module(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}))

    try:
        return freeze_unused(tower, run)
    except Exception as error:  # whatever the architecture makes of inconsistent sizes
        shapes = [list(value.shape) for value in inputs.values() if isinstance(value, Tensor)]
        kind = config_of(tower).model_type
        raise UserError(f"the {kind} tower can't process inputs of shape {shapes}: {first_line(error)}") from error


def freeze_unused(module: nn.Module, run: Callable[[nn.Module, torch.device], Tensor]) -> int:
    """Freeze the parameters that `run(module, device)` [..., W] doesn't depend on; its width W."""
    try:
        width, unused = _unused(copy.deepcopy(module).to("meta").eval(), run, torch.device("meta"))
    except (NotImplementedError, RuntimeError):  # an architecture that looks at values needs real ones
        training = module.training
        width, unused = _unused(module.eval(), run, torch.device("cpu"))
        module.train(training)
    for name, parameter in module.named_parameters():
        if name in unused:
            parameter.requires_grad_(False)
    return width


def enable_checkpointing(tower: nn.Module) -> None:
    """Recompute activations in the backward pass, where the architecture can."""
    if getattr(tower, "supports_gradient_checkpointing", False):
        # transformers renamed it in a minor version and warns at the old name.
        enable: Any = getattr(tower, "activation_checkpointing_enable", None) or tower.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    else:
        log.warning("gradient_checkpointing is skipped: the %s tower has none", config_of(tower).model_type)


def config_of(tower: nn.Module) -> Any:
    """The config of a tower of transformers, whose settings differ from one architecture to the next."""
    return tower.config


def own_size(tower: nn.Module) -> int | None:
    """Side of the images that a vision tower was made for; None where it doesn't matter to it."""
    size: Any = getattr(config_of(tower), "image_size", None)
    return int(size[0]) if isinstance(size, (list, tuple)) else size


def word_limit(tower: nn.Module, tokenizer_limit: int, wanted: int | None) -> int:
    """Longest caption in tokens that tower and tokenizer allow, or the one wanted.

    Raises:
        UserError: more are wanted than the tower has positions for, or less than a start, a word and an end.
    """
    positions: Any = getattr(config_of(tower), "max_position_embeddings", None) or tokenizer_limit
    padding_index = getattr(getattr(tower, "embeddings", None), "padding_idx", None)
    if padding_index is not None:  # RoBERTa and its kin count positions from behind the padding id
        positions -= padding_index + 1
    if wanted is None:
        return int(min(positions, tokenizer_limit))
    if not 3 <= wanted <= positions:
        raise UserError(f"max_words {wanted}: this text tower takes 3 to {positions} tokens")
    return wanted


def refuse_both(**alternatives: Any) -> None:
    """UserError where more than one of the arguments is given."""
    given = [name for name, value in alternatives.items() if value is not None]
    if len(given) > 1:
        raise UserError(
            f"give {' or '.join(given)}, not both; what a config gives is put aside by "
            f"{' or '.join(f'--model.backbone.{name} null' for name in given)}"
        )


def check_shares(**shares: float) -> None:
    """UserError where an argument is no share."""
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name} {value}: a share lies between 0 and 1")


def token_features(output: Any) -> Tensor:
    """The last hidden state as tokens [N, T, W]; the cells of a feature map [N, W, H, W'] are its tokens."""
    hidden: Tensor = output.last_hidden_state
    return hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden


def accepts(function: Any, argument: str) -> bool:
    """Whether a function has an argument of that name."""
    return argument in inspect.signature(function).parameters


def pretrained_image_spec(name: str, size: int | None) -> ImageSpec:
    """How a pretrained tower wants its images; ImageNet's mean and deviation where its folder doesn't say."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        facts: dict[str, Any] = ImageProcessingMixin.get_image_processor_dict(name)[0]
    except (OSError, ValueError):
        log.warning("%s has no preprocessor_config.json: images are normalised with ImageNet's constants", name)
        facts = {}
    extent = facts.get("crop_size") or facts.get("size") or {}
    if isinstance(extent, dict):
        extent = extent.get("height") or extent.get("shortest_edge")
    squash = isinstance(facts.get("size"), dict) and "shortest_edge" not in facts["size"]
    mean, std = facts.get("image_mean") or IMAGENET_MEAN, facts.get("image_std") or IMAGENET_STD
    return ImageSpec(
        size=int(size or extent or 224),
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        std=(float(std[0]), float(std[1]), float(std[2])),
        interpolation="bilinear" if facts.get("resample") == 2 else "bicubic",
        resize="squash" if squash else "shortest",
    )


def near(word: str, words: Any) -> str:
    """A hint at the most similar of `words`, or nothing."""
    match = difflib.get_close_matches(word, [str(candidate) for candidate in words], n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


def _new_tower(modality: Modality, config: dict[str, Any]) -> nn.Module:
    from transformers import AutoModel

    settings = _checked_config(f"{modality}_config", config)
    _, options = _tower_class(modality, settings)
    try:
        tower: nn.Module = AutoModel.from_config(settings, dtype=torch.float32, **options)
    except Exception as error:  # whatever the architecture makes of inconsistent sizes
        raise UserError(f"{modality}_config {config}: no such tower can be built ({first_line(error)})") from error
    return tower


def _pretrained_tower(modality: Modality, name: str) -> nn.Module:
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(name)
        config = getattr(config, f"{modality}_config", config)  # the tower of a two-tower model
        tower_class, options = _tower_class(modality, config)
        tower: nn.Module = tower_class.from_pretrained(name, config=config, dtype=torch.float32, **options)
    except UserError:
        raise
    except Exception as error:  # the hub, its clients and the readers of weights raise a dozen unrelated types
        raise UserError(
            f"{modality} {name!r} can't be had: it is no local folder with config and weights, and the hub did not "
            f"give it ({first_line(error)}). Give a folder made by save_pretrained, describe the tower in "
            f"{modality}_config to train it from scratch, or run once with a network."
        ) from error
    return tower


def _tower_class(modality: Modality, config: Any) -> tuple[Any, dict[str, Any]]:
    from transformers import MODEL_MAPPING

    if type(config) not in MODEL_MAPPING or getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{modality}: model_type {config.model_type!r} is no plain encoder")
    entry: Any = MODEL_MAPPING[type(config)]
    tower_class = entry[0] if isinstance(entry, tuple) else entry
    return tower_class, {"add_pooling_layer": False} if accepts(tower_class.__init__, "add_pooling_layer") else {}


def _checked_config(argument: str, config: dict[str, Any]) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig

    model_type = str(config.get("model_type", ""))
    if model_type not in CONFIG_MAPPING:
        raise UserError(
            f"{argument}: model_type {model_type!r} is none of transformers{near(model_type, CONFIG_MAPPING.keys())}"
        )
    known = _known_keys(model_type)
    for key in config:
        if key not in known:
            raise UserError(f"{argument}: {model_type} has no setting {key!r}{near(key, known)}")
    try:
        return AutoConfig.for_model(**config)
    except Exception as error:  # validation errors of transformers have types of their own
        raise UserError(f"{argument}: {first_line(error)}") from error


def _known_keys(model_type: str) -> set[str]:
    from transformers import AutoConfig

    default: Any = AutoConfig.for_model(model_type)
    return set(default.to_dict()) | set(default.attribute_map)


def _unused(
    module: nn.Module, run: Callable[[nn.Module, torch.device], Tensor], device: torch.device
) -> tuple[int, set[str]]:
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    with torch.enable_grad():  # a checkpoint may be opened where gradients are off
        features = run(module, device)
        gradients = torch.autograd.grad(features.sum(), list(named.values()), allow_unused=True)
    return features.shape[-1], {name for name, gradient in zip(named, gradients, strict=True) if gradient is None}
