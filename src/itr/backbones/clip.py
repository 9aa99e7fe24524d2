"""CLIP and related models, built by open_clip."""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
from torch import Tensor, nn

from itr.backbones.base import Backbone, ImageSpec, Side
from itr.backbones.tokenizers import Clean, HFTokenizer
from itr.backbones.towers import allow_only_one, enable_checkpointing, freeze_unused
from itr.backbones.towers.clip_features import (
    image_features,
    needs_full_length,
    probe_embeddings,
    text_features,
    text_parts,
    vision_parts,
)
from itr.backbones.towers.configs import suggest_name
from itr.backbones.towers.training import adapt_sides
from itr.component import plain
from itr.errors import UserError
from itr.types import Encoded, Tokens

log = logging.getLogger(__name__)

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


class CLIP(Backbone):
    """Any image-text model of open_clip (Radford et al., 2021, https://arxiv.org/abs/2103.00020; SigLIP, EVA ...).

    Without arguments, it is a small model with random weights that can be trained on a CPU. The temperature belongs to
    the objective: the pretrained one is `pretrained_temperature`, and SigLIP's bias is `pretrained_bias`.

    Args:
        model: name in open_clip, such as ViT-B-32, or local-dir:FOLDER or hf-hub:ORG/NAME.
        pretrained: tag of published weights, such as openai, or a local file; random weights by default.
        config: instead of `model`, an open_clip model config.
        tokenizer: name, folder or tokenizer.json, if the config names a tokenizer of the hub; by default that one.
        tokenizer_json: instead of `tokenizer`, its serialized form, as stored in a checkpoint.
        freeze: parameters to freeze, as prefixes of their names in open_clip: `visual`, `visual.conv1`,
            `transformer.resblocks.0` ...; `text` means the whole text tower.
        vision_lora: rank of low-rank adapters (LoRA) that are trained instead of the vision tower; needs
            `pip install itr[lora]`.
        text_lora: like `vision_lora`, for the text tower.
        cache: embed images only once if `visual` is frozen, and train on the stored embeddings: true, or `float32` to
            keep all digits instead of half precision.
        gradient_checkpointing: trade computation for memory in the towers.
        image_size: side length of the images, if it should differ from the model's; positions are interpolated.
        image_mean: channel means of pixels in [0, 1]; by default those of the weights, else OpenAI's.
        image_std: channel standard deviations, like `image_mean`.
        interpolation: how to resize evaluation images; by default as for the weights.
        resize: `shortest` crops the center, `squash` distorts; by default as for the weights.
        clean: how to clean captions before tokenization (see `itr.backbones.tokenizers.clean_function`); by default
            as for the weights.
        quick_gelu: whether the towers use the quick approximation of GELU, as OpenAI's do; by default as for the
            weights or the config. A local file does not say; it is asked for if published weights of the model differ.
    """

    fetched = ("model", "pretrained", "tokenizer")

    def __init__(
        self,
        model: str | None = None,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        tokenizer_json: str | None = None,
        freeze: list[str] | None = None,
        vision_lora: int | None = None,
        text_lora: int | None = None,
        cache: bool | Literal["float32"] = False,
        gradient_checkpointing: bool = False,
        image_size: int | None = None,
        image_mean: tuple[float, float, float] | None = None,
        image_std: tuple[float, float, float] | None = None,
        interpolation: Literal["bicubic", "bilinear"] | None = None,
        resize: Literal["shortest", "squash"] | None = None,
        clean: Clean | None = None,
        quick_gelu: bool | None = None,
    ) -> None:
        # open_clip and timm take a second to import
        from itr.backbones.towers.clip_loading import build_clip, find_clip_source, make_clip_tokenizer

        super().__init__()
        allow_only_one(model=model, config=config)
        allow_only_one(tokenizer=tokenizer, tokenizer_json=tokenizer_json)
        set_by_user = {"mean": image_mean, "std": image_std, "interpolation": interpolation, "resize_mode": resize}
        given = [name for name, value in set_by_user.items() if value is not None]
        source = find_clip_source(model, pretrained, config, quick_gelu, given)
        source.folder = tokenizer or source.folder
        self.cache = cache
        self.config = source.config
        self.model = build_clip(source.config, source.weights, image_size)
        self.model.visual.to(memory_format=torch.channels_last)  # type: ignore[call-overload,union-attr]
        self.untrained = ("CLIP",) if source.weights is None else ()
        self.dim = int(source.config["embed_dim"])
        self.pretrained_temperature, self.pretrained_bias = self._take_scale(source.weights is not None)
        spec = _image_spec(source.preprocess, self.model.visual)
        self.set_image_spec(spec.override(image_mean, image_std, interpolation, resize))
        self.tokenizer = make_clip_tokenizer(source, tokenizer_json, needs_full_length(self.text_tower), clean)
        self._check_vocabulary()

        freeze_unused(self.model, self._probe)
        self.frozen = self._freeze(freeze or [])
        adapt_sides(self.model, vision_lora, text_lora, _is_vision)
        if gradient_checkpointing:
            self._checkpoint()

    @property
    def text_tower(self) -> Any:
        """The module with the text tower's layers: in the original CLIP, the model itself."""
        return getattr(self.model, "text", self.model)

    def encode_image(self, image: Tensor) -> Encoded:
        """Embed pixels [I, 3, H, W], uint8."""
        return image_features(self.model.visual, self.normalise(image))

    def encode_text(self, text: Tokens) -> Encoded:
        """Embed captions [C, L]."""
        padded = self.stretched(text)
        return text_features(self.text_tower, padded).shortened(text.ids.shape[1])

    def frozen_sides(self) -> tuple[Side, ...]:
        """The images, if `visual` is frozen; the words of captions are not kept."""
        return ("image",) if "visual" in self.frozen else ()

    def tower_weights(self, side: Side) -> dict[str, Tensor]:
        """The weights of the vision tower and its projection."""
        return {name: value for name, value in self.model.state_dict().items() if _is_vision(name)}

    def compilable(self) -> list[nn.Module]:
        """The transformers of both towers, or the stages of a convolutional tower."""
        return [*vision_parts(self.model.visual), *text_parts(self.text_tower)]

    def is_tower(self, parameter_name: str) -> bool:
        """Always True: the projections are pretrained with the towers."""
        return True

    def train(self, mode: bool = True) -> CLIP:
        """Switch to training mode, except for frozen parts, whose running statistics must not change."""
        super().train(mode)
        for name, module in self.model.named_modules():
            if any(_below(name, prefix) for prefix in getattr(self, "frozen", ())):
                module.eval()
        return self

    def describe(self) -> dict[str, Any]:
        """Class path and arguments that rebuild this backbone without network access or other files."""
        description = super().describe()
        description["init_args"] |= {
            "model": None,
            "pretrained": None,
            "tokenizer": None,
            "config": self._inline_config(),
            "tokenizer_json": self.tokenizer.to_json() if isinstance(self.tokenizer, HFTokenizer) else None,
            **self.image_spec.described(),
            "quick_gelu": None,  # it is in the config
        }
        return description

    def _inline_config(self) -> dict[str, Any]:
        config: dict[str, Any] = plain(self.config)
        if config.pop("multimodal_cfg", None) is not None:  # CoCa without its decoder
            config["custom_text"] = True
        if hasattr(self.text_tower, "pooler"):
            config["text_cfg"]["hf_config"] = plain(self.text_tower.config.to_dict())
        return config

    def _take_scale(self, pretrained: bool) -> tuple[float | None, float | None]:
        """Remove what embeddings do not depend on: logit scale and bias, and CoCa's decoder."""
        scale, bias = self.model.logit_scale, self.model.logit_bias
        for name in ("logit_scale", "logit_bias", "text_decoder"):
            if hasattr(self.model, name):
                delattr(self.model, name)
        if not pretrained or not isinstance(scale, Tensor):  # the weights may lack it
            return None, None
        return float((-scale.detach()).exp()), float(bias.detach()) if isinstance(bias, Tensor) else None

    def _check_vocabulary(self) -> None:
        known = int(self.text_tower.vocab_size)
        if self.tokenizer.vocab_size > known and self.init_args.get("model") is None:
            raise UserError(
                f"text_cfg: vocab_size {known} is too small for the tokenizer's {self.tokenizer.vocab_size}"
            )

    def _probe(self, model: nn.Module, device: torch.device) -> Tensor:
        length = self.tokenizer.max_length if needs_full_length(self.text_tower) else 2
        return probe_embeddings(model, self.image_spec.size, length, device)

    def _freeze(self, prefixes: list[str]) -> list[str]:
        """Freeze parameters by prefix; returns the prefixes, with `text` expanded."""
        names = [name for name, _ in self.model.named_parameters()]
        if "text" in prefixes:
            tops = dict.fromkeys(name.split(".")[0] for name in names)
            prefixes = [p for p in prefixes if p != "text"] + [top for top in tops if top != "visual"]
        for prefix in prefixes:
            matching = [name for name in names if _below(name, prefix)]
            if not matching:
                raise UserError(
                    f"freeze: no parameter name starts with {prefix!r}{suggest_name(prefix, _prefixes(names))}"
                )
            for name in matching:
                self.model.get_parameter(name).requires_grad_(False)
        return prefixes

    def _checkpoint(self) -> None:
        if type(self.model.visual).__name__ == "ModifiedResNet":
            log.warning(
                "gradient_checkpointing is ignored for the vision tower: open_clip's ResNet does not support it"
            )
        self.model.visual.set_grad_checkpointing(True)  # type: ignore[operator,union-attr]
        if hasattr(self.text_tower, "pooler"):
            enable_checkpointing(self.text_tower.transformer)
        else:
            self.text_tower.transformer.grad_checkpointing = True


def _image_spec(preprocess: dict[str, Any], visual: Any) -> ImageSpec:
    size = visual.image_size[0] if isinstance(visual.image_size, tuple) else visual.image_size
    default = ImageSpec(size=int(size), mean=OPENAI_MEAN, std=OPENAI_STD, to_rgb="after_resize", crop_offset="even")
    resize = preprocess.get("resize_mode")
    if resize not in (None, "shortest", "squash"):
        raise UserError(f"resize_mode {resize!r} of the weights is not supported; set resize to shortest or squash")
    return default.override(
        preprocess.get("mean"),
        preprocess.get("std"),
        "bilinear" if preprocess.get("interpolation") == "bilinear" else "bicubic",
        resize,
    )


def _is_vision(name: str) -> bool:
    return _below(name, "visual")


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _prefixes(names: list[str]) -> set[str]:
    """All dotted prefixes of all names."""
    parts = [name.split(".") for name in names]
    return {".".join(part[:end]) for part in parts for end in range(1, len(part) + 1)}
