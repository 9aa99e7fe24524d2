"""Teachers small enough for a test, saved as their users have them: a folder each."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, ViTConfig, ViTImageProcessor, ViTModel

SIZE = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def save_text_teacher(folder: Path, texts: Iterable[str]) -> str:
    """A BERT of width 8 that knows the words of `texts`."""
    words = sorted({word for text in texts for word in text.split()})
    vocabulary = {word: at for at, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(vocabulary), **SIZE)).save_pretrained(folder)
    return str(folder)


def save_image_teacher(folder: Path) -> str:
    """A ViT of width 8 for images of 16 x 16."""
    torch.manual_seed(0)
    ViTModel(ViTConfig(image_size=16, patch_size=8, **SIZE)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return str(folder)
