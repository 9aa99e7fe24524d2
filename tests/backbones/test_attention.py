"""Every tower attends by torch's scaled-dot-product attention, and makes its masks without looking at them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from itr.backbones.attention import NAME, ask_nothing
from itr.backbones.clip import CLIP
from itr.backbones.towers import make_tower
from itr.methods.prompt_decoder import CrossPrompts, PromptDecoder
from itr.types import Tokens
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
    """Counts operations of torch by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    @property
    def attention(self) -> tuple[int, int]:
        """How often by one call, and how often by hand; where no kernel fits, the call has a softmax of its own."""
        kernels = sum(times for name, times in self.found.items() if name.startswith("_scaled_dot_product"))
        return kernels + self.found["_safe_softmax"], self.found["_softmax"]


def inputs(modality: str, device: Any = "cpu") -> dict[str, Any]:
    given = {"pixel_values": PIXELS} if modality == "vision" else {"input_ids": IDS, "attention_mask": MASK}
    return {name: value.to(device) for name, value in given.items()}


@pytest.mark.parametrize(("modality", "config"), TOWERS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_layer_of_a_tower_is_one_call(modality, config):
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
def test_masks_that_nobody_looks_at_change_nothing(modality, config):
    tower = make_tower(modality, None, config).eval()
    assert tower.config._attn_implementation == NAME
    found = tower(**inputs(modality)).last_hidden_state
    full = tower(input_ids=IDS, attention_mask=torch.ones_like(IDS)).last_hidden_state
    tower.set_attn_implementation("sdpa")
    assert torch.equal(tower(**inputs(modality)).last_hidden_state, found)
    torch.testing.assert_close(tower(input_ids=IDS).last_hidden_state, full, rtol=1e-4, atol=1e-5)


def test_attention_of_other_kinds_is_left_alone():
    tower = make_tower("text", None, {"model_type": "bert", **SIZE})
    tower.set_attn_implementation("eager")
    ask_nothing(tower)
    ask_nothing(nn.Identity())
    assert tower.config._attn_implementation == "eager"


def test_every_layer_of_open_clips_towers_is_one_call():
    vision = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    model = CLIP(config={"embed_dim": 16, "vision_cfg": vision, "text_cfg": text})
    with Calls() as calls:
        model.encode_image(PIXELS.to(torch.uint8))
        model.encode_text(Tokens(IDS, MASK.bool()))
    assert calls.attention == (5, 0)


@pytest.mark.parametrize(("decoder", "layers"), [(PromptDecoder(16, 2, 3, 2), 3), (CrossPrompts(16, 2, 2), 1)])
def test_every_layer_of_the_prompts_is_one_call(decoder, layers):
    with Calls() as calls:
        decoder(torch.randn(2, 5, 16), MASK.bool())
    assert calls.attention == (layers, 0)
