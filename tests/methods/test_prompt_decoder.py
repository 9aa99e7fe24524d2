"""The prompt decoders: equal to torch's layers, independent of padding, in three placements."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from itr.methods.prompt_decoder import CrossPrompts, PromptDecoder


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("placement", ["prefix", "postfix", "surround"])
def test_padding_does_not_matter(placement, positions):
    torch.manual_seed(0)
    decoder = PromptDecoder(8, 5, 2, 2, placement=placement, positions=positions).double()
    words, mask = torch.randn(2, 4, 8, dtype=torch.float64), torch.ones(2, 4, dtype=torch.bool)
    longer = torch.cat([words, torch.randn(2, 3, 8, dtype=torch.float64)], dim=1)
    longer_mask = torch.cat([mask, torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(decoder(longer, longer_mask), decoder(words, mask))


@pytest.mark.parametrize("attend_padding", [False, True])
@pytest.mark.parametrize("kind", [PromptDecoder, CrossPrompts])
def test_padding_matters_only_to_the_authors_decoder(kind, attend_padding):
    torch.manual_seed(0)
    decoder = kind(8, num_prompts=5, heads=2, attend_padding=attend_padding)
    words, mask = torch.randn(1, 6, 8), torch.tensor([[True] * 4 + [False] * 2])
    same = torch.allclose(decoder(words, mask), decoder(words[:, :4], mask[:, :4]), rtol=1e-4, atol=1e-5)
    assert same is not attend_padding


def test_placements_differ_only_by_positions():
    words, mask = torch.randn(2, 4, 8), torch.ones(2, 4, dtype=torch.bool)

    def outputs(positions):
        found = []
        for placement in ("prefix", "postfix", "surround"):
            torch.manual_seed(0)
            decoder = PromptDecoder(8, 5, 1, 2, placement=placement, positions=positions)
            found.append(decoder(words, mask))
        return found

    prefix, postfix, surround = outputs(positions=False)
    torch.testing.assert_close(prefix, postfix)
    torch.testing.assert_close(prefix, surround)
    prefix, postfix, surround = outputs(positions=True)
    assert not torch.allclose(prefix, postfix, atol=1e-3)
    assert not torch.allclose(prefix, surround, atol=1e-3)
    assert not torch.allclose(postfix, surround, atol=1e-3)


def test_a_decoder_block_equals_that_of_torch():
    torch.manual_seed(0)
    decoder = PromptDecoder(8, 3, 1, 2, mlp_ratio=2, placement="postfix", positions=False).eval()
    block = decoder.blocks[0]
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True, norm_first=True)
    pairs = {
        "self_attn.in_proj_": block.attention.qkv, "self_attn.out_proj.": block.attention.proj, "linear1.": block.fc1,
        "linear2.": block.fc2, "norm1.": block.norm1, "norm2.": block.norm2,
    }  # fmt: skip
    layer.load_state_dict({prefix + n: p for prefix, part in pairs.items() for n, p in part.state_dict().items()})
    words, mask = torch.randn(2, 4, 8), torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    sequence = torch.cat([words, decoder.prompts.expand(2, -1, -1)], dim=1)
    hidden = torch.cat([~mask, torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    expected = decoder.norm(layer(sequence, src_key_padding_mask=hidden)[:, -3:]).mean(dim=1)
    torch.testing.assert_close(decoder(words, mask), expected)


def test_cross_attention_equals_that_of_torch():
    torch.manual_seed(0)
    decoder = CrossPrompts(8, 3, 4)
    layer = nn.MultiheadAttention(8, 4, batch_first=True)
    inner = {f"in_proj_{name}": value for name, value in decoder.attention.qkv.state_dict().items()}
    layer.load_state_dict({**inner, **{f"out_proj.{n}": v for n, v in decoder.attention.proj.state_dict().items()}})
    words, mask = torch.randn(2, 4, 8), torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    prompts = decoder.prompts.expand(2, -1, -1)
    seen, _ = layer(prompts, words, words, key_padding_mask=~mask)
    torch.testing.assert_close(decoder(words, mask), (prompts + seen).mean(dim=1))


def test_all_outputs_are_pooled():
    torch.manual_seed(0)
    decoder = PromptDecoder(8, 5, 1, 2, placement="surround", pooling="gpo")
    words, mask = torch.randn(2, 4, 8), torch.ones(2, 4, dtype=torch.bool)
    seen = []
    decoder.pool.register_forward_hook(lambda _, inputs, output: seen.append(inputs))
    decoder(words, mask)
    ((outputs, pooled_mask),) = seen
    assert outputs.shape == (2, 5, 8)
    assert pooled_mask.all()
