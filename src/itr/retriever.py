"""Backbone + methods -> embeddings and scores: all of a model that search needs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from itr.backbones import Backbone
from itr.errors import UserError
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

    def encode_image(self, image: Tensor) -> Encoded:
        """Embed pixels [I, 3, H, W], uint8, or the features that the backbone takes [I, ...], with every method."""
        return self._embed_image(self.backbone.encode_image(image))

    def encode_images(self, batch: Batch) -> Encoded:
        """Embed the images of a batch through the backbone and every method."""
        return self._embed_image(self.backbone.encode_images(batch))

    def encode_texts(self, batch: Batch) -> Encoded:
        """Embed the captions of a batch through the backbone and every method."""
        return self._embed_text(self.backbone.encode_texts(batch))

    def encode_text(self, captions: Sequence[str]) -> Encoded:
        """Embed captions through the backbone and every method."""
        tokens = self.backbone.tokenizer(list(captions))
        return self.encode_tokens(Tokens(tokens.ids.to(self.device), tokens.mask.to(self.device)))

    def encode_tokens(self, tokens: Tokens) -> Encoded:
        """Embed tokenized captions [C, L] through the backbone and every method."""
        return self._embed_text(self.backbone.encode_text(tokens))

    def _embed_image(self, encoded: Encoded) -> Encoded:
        for method in self._method_modules():
            encoded = method.embed_image(encoded)
        return encoded

    def _embed_text(self, encoded: Encoded) -> Encoded:
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
