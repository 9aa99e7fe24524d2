"""Run the towers of open_clip for token features in addition to the pooled embedding.

Pooled embeddings equal those of `encode_image` and `encode_text`; the tower's last layers project the token features to
the same width, so that the two are comparable.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from itr.types import Encoded, Tokens


def image_features(visual: Any, pixels: Tensor) -> Encoded:
    """Embed normalized images [I, 3, H, W] with a vision tower of open_clip.

    Tokens are, for open_clip's own transformer, the pooled class token and the patches through the final norm and
    projection; for its ResNet, the mean and the cells of the last map through the value and output projections of the
    attention pool; for towers of timm, the patches or cells through the head's projection. If there is no
    such layer and the widths differ, the pooled embedding is the only token.
    """
    kind = type(visual).__name__
    if kind == "VisionTransformer":
        pooled, tokens = _vit(visual, pixels)
    elif kind == "ModifiedResNet":
        pooled, tokens = _resnet(visual, pixels)
    else:
        pooled, tokens = _timm(visual, pixels)
    return Encoded(pooled=pooled, tokens=tokens, mask=tokens.new_ones(tokens.shape[:2], dtype=torch.bool))


def text_features(text: Any, tokens: Tokens) -> Encoded:
    """Embed captions [C, L] with a text tower of open_clip: each word passes the final norm and projection.

    `text` is a CLIP that contains its text tower, a TextTransformer or an HFTextEncoder.
    """
    if hasattr(text, "pooler"):
        return _hf_text(text, tokens)
    if getattr(text, "cls_emb", None) is not None:
        text.output_tokens = True
        pooled, words = text(tokens.ids)
        return Encoded(pooled=pooled, tokens=_project(text.text_projection, text.ln_final(words)), mask=tokens.mask)
    return _causal_text(text, tokens)


def probe_embeddings(model: Any, size: int, length: int, device: torch.device) -> Tensor:
    """Both embeddings of a dummy input [2, D], to find the weights of a CLIP that they depend on.

    Args:
        model: a CLIP of open_clip.
        size: side length of the image.
        length: length of the caption in tokens.
        device: device of the model.
    """
    ids = torch.ones(1, length, dtype=torch.int64, device=device)
    image = image_features(model.visual, torch.zeros(1, 3, size, size, device=device))
    text = text_features(getattr(model, "text", model), Tokens(ids, torch.ones_like(ids, dtype=torch.bool)))
    return torch.cat([image.pooled, text.pooled])


def vision_parts(visual: Any) -> list[nn.Module]:
    """The modules of a vision tower that do most of the work, for compilation."""
    if type(visual).__name__ == "VisionTransformer":
        return [visual]
    owner = getattr(visual, "trunk", visual)
    names = ("blocks", "stages", "layers", "layer1", "layer2", "layer3", "layer4")
    parts = [getattr(owner, name, None) for name in names]
    return [part for part in parts if isinstance(part, nn.Sequential)]


def text_parts(text: Any) -> list[nn.Module]:
    """The same for a text tower."""
    return [text.transformer]


def needs_full_length(text: Any) -> bool:
    """Whether padding affects a caption's embedding, so that its length must be fixed.

    It does not in a causal tower pooled at its end token, nor in towers of transformers, which get a mask.
    """
    if hasattr(text, "pooler"):
        return False
    pool = getattr(text, "text_pool_type", None) or text.pool_type
    appended = getattr(text, "cls_emb", None) is not None
    return text.attn_mask is None or pool not in ("first", "argmax", "eos") or appended


def _vit(visual: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    visual.output_tokens = True
    pooled, tokens = visual(pixels)
    if visual.attn_pool is None and visual.final_ln_after_pool:
        tokens = visual.ln_post(tokens)
    tokens = _project(visual.proj, tokens)
    if visual.pool_type == "tok":
        tokens = torch.cat([pooled.unsqueeze(1), tokens], dim=1)
    return pooled, tokens


def _resnet(visual: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    grid = visual.stem(pixels)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        grid = layer(grid)
    pool = visual.attnpool
    cells = grid.flatten(2).transpose(1, 2)
    cells = torch.cat([cells.mean(dim=1, keepdim=True), cells], dim=1)
    return pool(grid), pool.c_proj(pool.v_proj(cells + pool.positional_embedding))


def _timm(visual: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    trunk, head = visual.trunk, visual.head
    features = trunk.forward_features(pixels)
    pooled = head(trunk.forward_head(features))
    tokens = features.flatten(2).transpose(1, 2) if features.ndim == 4 else features
    if features.ndim == 4 and features.shape[-1] == trunk.num_features != features.shape[1]:
        tokens = features.flatten(1, 2)  # Swin and similar models keep channels last
    if isinstance(getattr(trunk, "fc_norm", None), nn.Module):
        tokens = trunk.fc_norm(tokens)
    for layer in (trunk.get_classifier(), getattr(head, "proj", None), getattr(head, "mlp", None)):
        if isinstance(layer, nn.Module) and _input_width(layer) == tokens.shape[-1]:
            tokens = layer(tokens)
    return pooled, tokens if tokens.shape[-1] == pooled.shape[-1] else pooled.unsqueeze(1)


def _input_width(layer: nn.Module) -> int | None:
    first = next((module for module in layer.modules() if isinstance(module, nn.Linear)), None)
    return None if first is None else first.in_features


def _causal_text(text: Any, tokens: Tokens) -> Encoded:
    # Not the tower's own forward, which requires the full length: captions are seven times shorter.
    from open_clip.transformer import text_global_pool

    ids, length = tokens.ids, tokens.ids.shape[1]
    attention = None if text.attn_mask is None else text.attn_mask[:length, :length]
    words = text.token_embedding(ids) + text.positional_embedding[:length]
    words = text.ln_final(text.transformer(words, attn_mask=attention))
    pool = getattr(text, "text_pool_type", None) or text.pool_type
    end_id = text.text_eos_id if hasattr(text, "text_eos_id") else text.eos_id
    pooled = text_global_pool(words, ids, pool, eos_token_id=end_id)
    return Encoded(_project(text.text_projection, pooled), _project(text.text_projection, words), tokens.mask)


def _hf_text(text: Any, tokens: Tokens) -> Encoded:
    attention = tokens.mask.long()
    output = text.transformer(input_ids=tokens.ids, attention_mask=attention)
    pooled = text.proj(text.pooler(output, attention))
    return Encoded(pooled=pooled, tokens=text.proj(output.last_hidden_state), mask=tokens.mask)


def _project(projection: Any, features: Tensor) -> Tensor:
    """Apply a projection, which may be a layer, a matrix or None."""
    if projection is None:
        return features
    projected: Tensor = projection(features) if isinstance(projection, nn.Module) else features @ projection
    return projected
