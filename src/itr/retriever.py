"""Backbone + methods -> embeddings and scores: all of a model that search needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from torch import Tensor, nn

from itr.backbones import Backbone
from itr.errors import UserError
from itr.images.inputs import pixels_of
from itr.methods import Method, MethodModule
from itr.state.self_describing import SelfDescribing
from itr.types import Batch, Encoded, Tokens


class Retriever(SelfDescribing):
    """Embeds images and captions and scores pairs of them, in training, evaluation and search alike.

    Args:
        backbone: the pair of towers.
        methods: plug-ins, applied in this order.

    Raises:
        UserError: a method is listed twice.
    """

    def __init__(self, backbone: Backbone, methods: Sequence[Method]) -> None:
        super().__init__()
        self.backbone = backbone
        names = [method.name for method in methods]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"method {name!r} is given twice; name each method once")
        self.methods = nn.ModuleDict({method.name: method.build(self.backbone) for method in methods})

    def encode_image(self, image: Any) -> Encoded:
        """Embed images with every method, preprocessed as in evaluation.

        Args:
            image: pixels [I, 3, H, W], uint8, a PIL image, a path, or what else `pixels_of` takes; for a backbone that
                takes features instead of pixels, its features [I, ...].

        Raises:
            UserError: it is something else, such as pixels from 0 to 1.
        """
        if self.backbone.image_field is None:
            image = pixels_of(image, self.backbone.image_spec)
        elif not isinstance(image, Tensor):
            raise UserError(
                f"this model takes the field {self.backbone.image_field!r} instead of pixels; give it as a tensor "
                f"[I, ...], not a {type(image).__name__}"
            )
        return self.embed_image(self.backbone.encode_image(image.to(self.device)))

    def encode_images(self, batch: Batch) -> Encoded:
        """Embed the images of a batch through the backbone and every method."""
        return self.embed_image(self.backbone.encode_images(batch))

    def encode_texts(self, batch: Batch) -> Encoded:
        """Embed the captions of a batch through the backbone and every method."""
        return self.embed_text(self.backbone.encode_texts(batch))

    def encode_text(self, captions: str | Sequence[str]) -> Encoded:
        """Embed a caption, or a list of captions, through the backbone and every method.

        Raises:
            UserError: it is something else, or the list is empty.
        """
        tokens = self.backbone.tokenizer(caption_list(captions))
        return self.encode_tokens(Tokens(tokens.ids.to(self.device), tokens.mask.to(self.device)))

    def encode_tokens(self, tokens: Tokens) -> Encoded:
        """Embed tokenized captions [C, L] through the backbone and every method."""
        return self.embed_text(self.backbone.encode_text(tokens))

    def embed_image(self, encoded: Encoded) -> Encoded:
        """Apply every method to the backbone's embeddings of images."""
        for method in self._method_modules():
            encoded = method.embed_image(encoded)
        return encoded

    def embed_text(self, encoded: Encoded) -> Encoded:
        """Apply every method to the backbone's embeddings of captions."""
        for method in self._method_modules():
            encoded = method.embed_text(encoded)
        return encoded

    def similarity(self, image: Encoded, text: Encoded) -> Tensor:
        """Score every image against every caption, as the backbone does and the methods change it [I, C]."""
        scores = self.backbone.similarity(image, text)
        for method in self._method_modules():
            scores = method.change_scores(scores, image, text)
        return scores

    @property
    def needs_tokens(self) -> bool:
        """Whether scores or losses use token-level features."""
        return self.backbone.needs_tokens or any(method.needs_tokens for method in self._method_modules())

    def _method_modules(self) -> list[MethodModule]:
        return list(self.methods.children())  # type: ignore[arg-type]


def caption_list(captions: Any) -> list[str]:
    """One caption or several, as a list.

    Raises:
        UserError: it is something else, or the list is empty.
    """
    if isinstance(captions, str):
        return [captions]
    if isinstance(captions, bytes | Mapping | Set) or not isinstance(captions, Iterable):
        raise UserError(f"give a caption or a list of captions, not a {type(captions).__name__}")
    found = list(captions)
    for caption in found:
        if not isinstance(caption, str):
            raise UserError(f"each caption must be a string; the list contains a {type(caption).__name__}")
    if not found:
        raise UserError("there are no captions to embed: the list is empty")
    return found
