"""A tiny tokenizer, as a string and as a folder, and a machine without network access."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "dog", "cat", "man", "runs", "sits", "on", "mat"]
WORDS += ["ball", "red", "big"]


def tiny_tokenizer() -> Any:
    """A BERT tokenizer with seventeen words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece({word: id for id, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(WORDS[:5])
    return tokenizer


@pytest.fixture
def tokenizer_json() -> str:
    return str(tiny_tokenizer().to_str())


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    import transformers

    tokenizer_class: Any = transformers.PreTrainedTokenizerFast
    folder = tmp_path / "tokenizer"
    tokenizer_class(
        tokenizer_object=tiny_tokenizer(),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=20,
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the hub fail immediately, instead of after half a minute of retries."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
