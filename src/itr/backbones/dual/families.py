"""How each architecture of transformers embeds images and captions.

Pooled embeddings are those of `get_image_features` and `get_text_features`. Patches and words pass the same last
layers, so that they have the same width and can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from itr.errors import UserError

Features = tuple[Tensor, Tensor]  # pooled [N, D] and tokens [N, T, D]
SCALES = ("logit_scale", "logit_bias", "temperature")


@dataclass(frozen=True)
class Family:
    """An architecture.

    Attributes:
        model: its class in transformers.
        context: longest caption in tokens in pre-training.
        image: embeds normalized images: model, pixels [I, 3, H, W] and further arguments of the vision tower.
        text: embeds captions: model, ids [C, L] and mask [C, L], or None for no mask.
        masked: whether the text tower gets a mask. Without one, captions are padded to a fixed length and the padding
            counts, as in pre-training.
        pools_at_end: whether the text tower pools at the end token, which it finds by its id.
        text_tower: name of the text tower within the model.
        processor: class of the image processor in transformers.
        processor_options: its arguments, where the published ones differ from its defaults.
    """

    model: str
    context: int
    image: Callable[..., Features]
    text: Callable[[Any, Tensor, Tensor | None], Features]
    masked: bool = True
    pools_at_end: bool = False
    text_tower: str = "text_model"
    processor: str = "CLIPImageProcessor"
    processor_options: dict[str, Any] = field(default_factory=dict)


def _projected_image(model: Any, pixels: Tensor, **options: Any) -> Features:
    """CLIP and its kin: the class token and the patches through the final norm and the projection."""
    output = model.get_image_features(pixel_values=pixels, **options)
    tokens = model.visual_projection(model.vision_model.post_layernorm(output.last_hidden_state))
    return output.pooler_output, tokens


def _projected_text(model: Any, ids: Tensor, mask: Tensor | None) -> Features:
    output = model.get_text_features(input_ids=ids, attention_mask=mask)
    return output.pooler_output, model.text_projection(output.last_hidden_state)


def _siglip_image(model: Any, pixels: Tensor, **options: Any) -> Features:
    """The pooling head has no projection, so the patches after the final norm have its width."""
    output = model.get_image_features(pixel_values=pixels, **options)
    return output.pooler_output, output.last_hidden_state


def _siglip_text(model: Any, ids: Tensor, mask: Tensor | None) -> Features:
    output = model.get_text_features(input_ids=ids, attention_mask=mask)
    return output.pooler_output, model.text_model.head(output.last_hidden_state)


def _align_image(model: Any, pixels: Tensor, **options: Any) -> Features:
    """The cells of the last map, whose mean is the embedding."""
    output = model.get_image_features(pixel_values=pixels, **options)
    return output.pooler_output, output.last_hidden_state.flatten(2).transpose(1, 2)


def _blip_image(model: Any, pixels: Tensor, **options: Any) -> Features:
    """The projections of BLIP's contrastive loss; BlipForImageTextRetrieval has no `get_image_features`.

    BlipModel has one, but with projections of its own, for which no weights were published.
    """
    tokens = model.vision_proj(model.vision_model(pixel_values=pixels, **options).last_hidden_state)
    return tokens[:, 0], tokens


def _blip_text(model: Any, ids: Tensor, mask: Tensor | None) -> Features:
    tokens = model.text_proj(model.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state)
    return tokens[:, 0], tokens


# By `model_type`. The context lengths are those of the authors' code, or of transformers' processors.
FAMILIES: dict[str, Family] = {
    "clip": Family("CLIPModel", 77, _projected_image, _projected_text, pools_at_end=True),
    "metaclip_2": Family("MetaClip2Model", 77, _projected_image, _projected_text, pools_at_end=True),
    "siglip": Family(
        "SiglipModel", 64, _siglip_image, _siglip_text, masked=False, processor="SiglipImageProcessor"
    ),
    "altclip": Family("AltCLIPModel", 77, _projected_image, _projected_text),
    "chinese_clip": Family(
        "ChineseCLIPModel", 52, _projected_image, _projected_text, processor="ChineseCLIPImageProcessor"
    ),
    "align": Family(
        "AlignModel", 64, _align_image, _projected_text, processor="EfficientNetImageProcessor",
        processor_options={
            "do_center_crop": True, "rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False,
            "include_top": False, "resample": 2,
        },
    ),
    "blip": Family(
        "BlipForImageTextRetrieval", 35, _blip_image, _blip_text, text_tower="text_encoder",
        processor="BlipImageProcessor",
    ),
}  # fmt: skip


def family_of(model_type: str, what: str) -> Family:
    """The family of a `model_type` of transformers.

    Args:
        model_type: as in the model's config.
        what: names the model in the message.

    Raises:
        UserError: it is none of ours.
    """
    if model_type == "siglip2":
        raise UserError(
            f"{what}: this SigLIP 2 takes images of any shape (NaFlex), and itr feeds squares of one size; choose a "
            "SigLIP 2 of fixed resolution, such as google/siglip2-base-patch16-224"
        )
    if model_type not in FAMILIES:
        raise UserError(
            f"{what}: Dual has no family for model_type {model_type!r}; it takes {', '.join(sorted(FAMILIES))}. Use "
            "CLIP for models of open_clip, and VSE for a pair of single towers"
        )
    return FAMILIES[model_type]


def is_vision(parameter_name: str) -> bool:
    """Whether a parameter of a dual encoder belongs to its vision side, projection included."""
    return parameter_name.startswith(("vision_model.", "visual_projection.", "vision_proj."))


def probe(model: Any, family: Family, size: int, device: torch.device, **options: Any) -> Tensor:
    """Both embeddings of a dummy input [2, D], times what scales their product, to find the weights that they need.

    Args:
        model: a dual encoder.
        family: its family.
        size: side length of the image.
        device: device of the model.
        options: further arguments of the vision tower.
    """
    ids = torch.ones(1, 3, dtype=torch.int64, device=device)
    image = family.image(model, torch.zeros(1, 3, size, size, device=device), **options)[0]
    text = family.text(model, ids, torch.ones_like(ids) if family.masked else None)[0]
    both = torch.cat([image, text])
    for name in SCALES:
        if hasattr(model, name):
            both = both * getattr(model, name)
    return both
