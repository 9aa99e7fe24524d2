"""Every tower uses torch's scaled-dot-product attention, and makes its masks without synchronizing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from itr.backbones import Dual
from itr.backbones.clip import CLIP
from itr.backbones.towers.building import ATTENTION_NAME, avoid_mask_sync, make_tower
from itr.methods.prompt_decoder import CrossPrompts, PromptDecoder
from itr.types import Tokens
from tiny_duals import DUALS
from valueless import DEVICE, Waits

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
VIT = {"model_type": "vit", "image_size": 32, "patch_size": 16, **SIZE}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
PIXELS = torch.zeros(2, 3, 32, 32)
IDS = torch.ones(2, 5, dtype=torch.int64)
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
TOWERS: list[tuple[Any, dict[str, Any]]] = [
    ("vision", VIT),
    ("vision", {"model_type": "swin", **SWIN}),
    ("text", {"model_type": "bert", **SIZE}),
    ("text", {"model_type": "roberta", **SIZE}),
    ("text", {"model_type": "distilbert", "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 16}),
]


class Calls(TorchDispatchMode):
    """Counts torch operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    @property
    def attention(self) -> tuple[int, int]:
        """Number of fused and of manual attention calls; if no kernel fits, the fused call has its own softmax."""
        kernels = sum(times for name, times in self.counts.items() if name.startswith("_scaled_dot_product"))
        return kernels + self.counts["_safe_softmax"], self.counts["_softmax"]


def inputs(modality: str, device: Any = "cpu") -> dict[str, Any]:
    given = {"pixel_values": PIXELS} if modality == "vision" else {"input_ids": IDS, "attention_mask": MASK}
    return {name: value.to(device) for name, value in given.items()}


@pytest.mark.parametrize(("modality", "config"), TOWERS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_layer_of_a_tower_uses_one_fused_call(modality, config):
    tower = make_tower(modality, None, config)
    with Calls() as calls:
        tower(**inputs(modality))
    assert calls.attention == (2, 0)
    tower, given = tower.to(DEVICE), inputs(modality, DEVICE)
    with Waits() as waits:
        waits.writing = True
        tower(**given)
    assert not waits.found


@pytest.mark.parametrize(("modality", "config"), TOWERS[2:4], ids=["bert", "roberta"])
def test_avoiding_the_mask_check_does_not_change_results(modality, config):
    tower = make_tower(modality, None, config).eval()
    assert tower.config._attn_implementation == ATTENTION_NAME
    found = tower(**inputs(modality)).last_hidden_state
    full = tower(input_ids=IDS, attention_mask=torch.ones_like(IDS)).last_hidden_state
    tower.set_attn_implementation("sdpa")
    assert torch.equal(tower(**inputs(modality)).last_hidden_state, found)
    torch.testing.assert_close(tower(input_ids=IDS).last_hidden_state, full, rtol=1e-4, atol=1e-5)


def test_other_attention_implementations_are_left_unchanged():
    tower = make_tower("text", None, {"model_type": "bert", **SIZE})
    tower.set_attn_implementation("eager")
    avoid_mask_sync(tower)
    avoid_mask_sync(nn.Identity())
    assert tower.config._attn_implementation == "eager"


def test_every_layer_of_open_clip_towers_uses_one_fused_call():
    vision = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    model = CLIP(config={"embed_dim": 16, "vision_cfg": vision, "text_cfg": text})
    with Calls() as calls:
        model.encode_image(PIXELS.to(torch.uint8))
        model.encode_text(Tokens(IDS, MASK.bool()))
    assert calls.attention == (5, 0)


@pytest.mark.parametrize(("decoder", "layers"), [(PromptDecoder(16, 2, 3, 2), 3), (CrossPrompts(16, 2, 2), 1)])
def test_every_layer_of_the_prompt_decoders_uses_one_fused_call(decoder, layers):
    with Calls() as calls:
        decoder(torch.randn(2, 5, 16), MASK.bool())
    assert calls.attention == (layers, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "metaclip_2", "siglip", "altclip", "chinese_clip"])  # the others mask by hand
def test_dual_encoders_make_their_masks_without_synchronizing(name):
    model = Dual(config=DUALS[name])
    tokens = model.tokenizer(["a dog", "a cat sits on the mat"])
    model, tokens = model.to(DEVICE), Tokens(tokens.ids.to(DEVICE), tokens.mask.to(DEVICE))
    pixels = PIXELS.to(DEVICE)
    with Waits() as waits:
        waits.writing = True
        model.encode_image(pixels)
        model.encode_text(tokens)
    assert not waits.found
