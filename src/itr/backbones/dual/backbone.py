"""Dual encoders of transformers: SigLIP, MetaCLIP 2, CLIP, AltCLIP, Chinese-CLIP, ALIGN, BLIP's contrastive part."""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
from torch import Tensor, nn

from itr.backbones.base import Backbone, ImageSpec, Side
from itr.backbones.dual.captions import caption_tokenizer, dual_caption_limit
from itr.backbones.dual.families import is_vision, probe
from itr.backbones.dual.loading import SMALL_DUAL, build_dual, load_dual, processor_of, take_scale
from itr.backbones.tokenizers import Clean, HFTokenizer
from itr.backbones.towers import allow_only_one, enable_checkpointing, freeze_unused
from itr.backbones.towers.building import config_of, interpolation, native_image_size
from itr.backbones.towers.configs import describe_config
from itr.backbones.towers.image_specs import spec_of_processor
from itr.backbones.towers.training import adapt_sides
from itr.errors import UserError, quoted
from itr.types import Encoded, Tokens

log = logging.getLogger(__name__)


class Dual(Backbone):
    """A dual encoder of transformers with its pretrained projections, image format and rules for captions.

    Its `model_type` is one of `itr.backbones.dual.families.FAMILIES`. Without arguments, it is a small model with
    random weights that can be trained on a CPU. The temperature belongs to the objective: the pretrained one is
    `pretrained_temperature`, and SigLIP's bias is `pretrained_bias`.

    Args:
        model: pretrained model: a name on the hub or a folder made by save_pretrained.
        config: instead of `model`, the config of a model to train from scratch: `model_type`, `text_config`,
            `vision_config` and further settings of transformers.
        tokenizer: name, folder or tokenizer.json; by default that of `model`, or CLIP's byte-pair encoding.
        tokenizer_json: instead of `tokenizer`, its serialized form, as stored in a checkpoint.
        image_size: side length of the images, if it should differ from the model's; positions are interpolated.
        image_mean: channel means of pixels in [0, 1]; by default as for the model.
        image_std: channel standard deviations, like `image_mean`.
        interpolation: how to resize evaluation images; by default as for the model.
        resize: `shortest` crops the center, `squash` distorts; by default as for the model.
        resize_to: side to resize evaluation images to before the center is cropped; by default as for the model.
        clean: how to clean captions before tokenization (see `itr.backbones.tokenizers.clean_function`), beyond what
            the model's tokenizer does.
        freeze_vision: freeze the vision tower and its projection.
        freeze_text: freeze the text tower and its projection.
        vision_lora: rank of low-rank adapters (LoRA) that are trained instead of the vision tower and its projection;
            needs `pip install itr[lora]`.
        text_lora: like `vision_lora`, for the text tower.
        cache: embed images only once if their tower is frozen, and train on the stored embeddings: true, or `float32`
            to keep all digits instead of half precision.
        gradient_checkpointing: trade computation for memory in the towers.
        max_words: longest caption in tokens; by default as in pre-training.
    """

    fetched = ("model", "tokenizer")

    def __init__(
        self,
        model: str | None = None,
        config: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        tokenizer_json: str | None = None,
        image_size: int | None = None,
        image_mean: tuple[float, float, float] | None = None,
        image_std: tuple[float, float, float] | None = None,
        interpolation: Literal["bicubic", "bilinear"] | None = None,
        resize: Literal["shortest", "squash"] | None = None,
        resize_to: int | None = None,
        clean: Clean | None = None,
        freeze_vision: bool = False,
        freeze_text: bool = False,
        vision_lora: int | None = None,
        text_lora: int | None = None,
        cache: bool | Literal["float32"] = False,
        gradient_checkpointing: bool = False,
        max_words: int | None = None,
    ) -> None:
        super().__init__()
        allow_only_one(model=model, config=config)
        allow_only_one(tokenizer=tokenizer, tokenizer_json=tokenizer_json)
        self.freeze_vision, self.freeze_text, self.cache = freeze_vision, freeze_text, cache
        self.untrained = ("the dual encoder",) if model is None else ()
        self.model, self.family = build_dual(config or SMALL_DUAL) if model is None else load_dual(model)
        temperature, bias = take_scale(self.model)
        self.pretrained_temperature, self.pretrained_bias = (temperature, bias) if model else (None, None)
        self.model.vision_model.to(memory_format=torch.channels_last)  # type: ignore[operator,union-attr]

        spec = self._image_spec(model, image_size, resize_to)
        self.set_image_spec(spec.override(image_mean, image_std, interpolation, resize))
        text_config = config_of(self.model).text_config
        self.tokenizer = caption_tokenizer(tokenizer or model, tokenizer_json, self.family, text_config, clean)
        self.tokenizer.limit(dual_caption_limit(self.text_tower, self.tokenizer, self.family, max_words))
        self.dim = self._freeze()
        adapt_sides(self.model, vision_lora, text_lora, is_vision)
        if gradient_checkpointing:
            self._checkpoint()

    @property
    def text_tower(self) -> nn.Module:
        """The text tower, without its projection."""
        tower: nn.Module = getattr(self.model, self.family.text_tower)
        return tower

    def encode_image(self, image: Tensor) -> Encoded:
        """Embed pixels [I, 3, H, W], uint8."""
        pooled, tokens = self.family.image(self.model, self.normalise(image), **self._vision_options())
        return Encoded(pooled, tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool))

    def encode_text(self, text: Tokens) -> Encoded:
        """Embed captions [C, L]."""
        padded = self.stretched(text)
        mask = padded.mask.long() if self.family.masked else None
        pooled, tokens = self.family.text(self.model, padded.ids, mask)
        return Encoded(pooled, tokens, padded.mask).shortened(text.ids.shape[1])

    def frozen_sides(self) -> tuple[Side, ...]:
        """The images, if their tower is frozen; the words of captions are not kept."""
        return ("image",) if self.freeze_vision else ()

    def tower_weights(self, side: Side) -> dict[str, Tensor]:
        """The weights of the vision tower and its projection."""
        return {name: value for name, value in self.model.state_dict().items() if is_vision(name)}

    def compilable(self) -> list[nn.Module]:
        """Both towers."""
        return [self.model.get_submodule("vision_model"), self.text_tower]

    def is_tower(self, parameter_name: str) -> bool:
        """Always True: the projections are pretrained with the towers."""
        return True

    def train(self, mode: bool = True) -> Dual:
        """Switch to training mode, except for frozen towers, whose dropout stays off."""
        super().train(mode)
        for name, part in self.model.named_children():
            frozen = self.freeze_vision if is_vision(f"{name}.") else self.freeze_text
            part.train(mode and not frozen)
        return self

    def describe(self) -> dict[str, Any]:
        """Class path and arguments that rebuild this backbone without network access or other files."""
        description = super().describe()
        description["init_args"] |= {
            "model": None,
            "config": describe_config(config_of(self.model)),
            "tokenizer": None,
            "tokenizer_json": self.tokenizer.to_json() if isinstance(self.tokenizer, HFTokenizer) else None,
            **self.image_spec.described(),
            "resize_to": self.image_spec.resize_to,
            "max_words": self.tokenizer.max_length,
        }
        return description

    def _image_spec(self, model: str | None, image_size: int | None, resize_to: int | None) -> ImageSpec:
        spec = spec_of_processor(processor_of(model, self.family), model or self.family.processor)
        native = native_image_size(self.model.vision_model) if model is None else None  # type: ignore[arg-type]
        return spec.scaled(image_size or native or spec.size, resize_to)

    def _vision_options(self) -> dict[str, Any]:
        return interpolation(self.model.get_submodule("vision_model"), self.image_spec.size)

    def _freeze(self) -> int:
        """Freeze what is not used, or should not be trained; returns the width of the embeddings."""

        def run(model: nn.Module, device: torch.device) -> Tensor:
            return probe(model, self.family, self.image_spec.size, device, **self._vision_options())

        try:
            dim = freeze_unused(self.model, run)
        except Exception as error:  # architectures raise various types for inconsistent sizes
            raise UserError(f"this dual encoder cannot embed a pair in one space: {quoted(error)}") from error
        for name, parameter in self.model.named_parameters():
            if self.freeze_vision if is_vision(name) else self.freeze_text:
                parameter.requires_grad_(False)
        return dim

    def _checkpoint(self) -> None:
        enable_checkpointing(self.model)
        # transformers lets word embeddings require gradients for checkpoints of another kind; a frozen tower must not.
        self.model.disable_input_require_grads()  # type: ignore[operator]
        for tower in self.compilable():
            if not any(getattr(part, "gradient_checkpointing", False) for part in tower.modules()):
                log.warning("gradient_checkpointing is ignored for %s: it does not support it", type(tower).__name__)
