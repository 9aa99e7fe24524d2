"""Tokenizers: padding, truncation, unusual text, pickling."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from itr.backbones import words
from itr.backbones.tokenizers import BPETokenizer, HFTokenizer, clean_function, load_tokenizer, plain_words
from itr.errors import UserError

ODD = ["", " ", "\x00", "\ud800 dog", "\U0001f600\U0001f1ea\U0001f1fa", "שלום כלב", "a\u202edog", "<end_of_text> [SEP]"]


def make(kind: str, serialised: str) -> Any:
    return BPETokenizer() if kind == "bpe" else HFTokenizer(serialised, max_length=12)


@pytest.fixture(params=["bpe", "hf"])
def tokenizer(request: pytest.FixtureRequest, tokenizer_json: str) -> Any:
    return make(request.param, tokenizer_json)


def test_pads_to_the_longest(tokenizer: Any) -> None:
    tokens = tokenizer(["a dog", "the big red dog runs"])

    assert tokens.mask.sum(1).tolist() == [4, 7]
    assert tokens.ids.shape == (2, 7)
    assert (tokens.ids[0, 4:] == tokenizer.pad_id).all()
    assert tokens.ids.dtype == torch.int64


def test_truncation_keeps_the_end(tokenizer: Any) -> None:
    short, long = tokenizer(["a dog"]), tokenizer(["a dog " * 100])

    assert long.ids.shape == (1, tokenizer.max_length)
    assert long.ids[0, -1] == short.ids[0, -1]
    tokenizer.limit(5)
    assert tokenizer(["a dog " * 100]).ids.shape == (1, 5)


def test_odd_text(tokenizer: Any) -> None:
    tokens = tokenizer(ODD)

    assert tokens.ids.shape == tokens.mask.shape
    assert tokens.mask.any(dim=1).all()
    assert tokens.ids.max() < tokenizer.vocab_size
    assert len(tokenizer([])) == 0


def test_pickling(tokenizer: Any) -> None:
    captions = ["a dog", *ODD]
    before = tokenizer(captions)

    stream = pickle.dumps(tokenizer)
    after = pickle.loads(stream)(captions)

    assert len(stream) < 20_000
    assert torch.equal(before.ids, after.ids)
    assert torch.equal(before.mask, after.mask)


def test_full_length(tokenizer_json: str) -> None:
    for tokenizer in (BPETokenizer(20, full_length=True), HFTokenizer(tokenizer_json, 20, full_length=True)):
        tokens = tokenizer(["a dog"])
        assert tokens.ids.shape == (1, 20)
        assert tokens.mask.sum() == 4


def scribble(number: int) -> list[str]:
    """Texts with parts that a tokenizer might split or join across words."""
    pieces = [
        "dog",
        "Dog's",
        "a",
        "  ",
        "\t",
        "&amp;",
        "&lt;b&gt;",
        "it's",
        "123",
        "...",
        "[MASK]",
        "x[SEP]y",
        "runs!?",
    ]
    pieces += [
        "<start_of_text>",
        "caf\u00e9",
        "\u00a0",
        "\u2019s",
        "x" * 70,
        "\x1c",
        "\x1b[1m",
        "\u00c3\u00a9",
        "_",
        "-",
    ]
    rng = np.random.default_rng(0)
    return ["".join(piece + " " * rng.integers(2) for piece in rng.choice(pieces, 9)) for _ in range(number)]


@pytest.mark.slow
@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_bpe_word_by_word_equals_open_clip(clean: Any) -> None:
    from open_clip.tokenizer import SimpleTokenizer

    texts = scribble(300)
    reference = SimpleTokenizer(clean=clean)
    assert [clean_function(clean)(text) for text in texts] == [reference.clean_fn(text) for text in texts]
    assert torch.equal(BPETokenizer(77, True, clean)(texts).ids[:, :-1], reference(texts)[:, :-1])


def test_the_word_cache_is_bounded(monkeypatch: pytest.MonkeyPatch, tokenizer_json: str) -> None:
    texts = scribble(100)
    for kind in ("bpe", "hf"):
        free, bounded = make(kind, tokenizer_json), make(kind, tokenizer_json)
        expected = free(texts).ids
        with monkeypatch.context() as patch:
            patch.setattr(words, "MAX_CACHED_WORDS", 3)
            assert torch.equal(bounded(texts).ids, expected)
        if kind == "bpe" or bounded.frame:
            assert 0 < len(bounded._words.known) <= 3 < len(free._words.known)
        assert "x" * 70 not in free._words.known
    assert len(make("bpe", "")(texts).ids) == 100


def test_bert_tokenizers_word_by_word_give_the_same_ids() -> None:
    from tokenizers import BertWordPieceTokenizer
    from tokenizers.processors import BertProcessing

    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(["a dog runs it's 123"] * 3, vocab_size=60, show_progress=False)
    trained.add_special_tokens(["[PAD]", "[MASK]"])
    start, end = (trained.token_to_id(name) for name in ("[CLS]", "[SEP]"))
    trained._tokenizer.post_processor = BertProcessing(("[SEP]", end), ("[CLS]", start))
    ours, texts = HFTokenizer(trained.to_str(), 12), scribble(300)
    assert ours.frame == ([start], [end])
    for limit in (12, 2, 5, 40):  # the cache must not survive a change of the limit
        ours.limit(limit)
        theirs = ours.fast.encode_batch(texts)
        found = ours(texts)
        assert found.ids.tolist() == [row.ids for row in theirs]
        assert found.mask.tolist() == [[bool(m) for m in row.attention_mask] for row in theirs]
    trained.add_tokens(["dog runs"])  # spans a space
    assert HFTokenizer(trained.to_str()).frame is None


def test_bpe_equals_open_clip() -> None:
    from open_clip.tokenizer import SimpleTokenizer

    captions = ["A Man, riding a wave!", "", "caf\u00e9 &amp; bar", "dog " * 100]

    assert torch.equal(BPETokenizer(full_length=True)(captions).ids, SimpleTokenizer()(captions))


def test_properties_of_a_serialized_tokenizer(tokenizer_json: str) -> None:
    tokenizer = HFTokenizer(tokenizer_json, max_length=9)
    again = HFTokenizer(tokenizer.to_json())

    assert (again.pad_id, again.mask_id, again.special_ids) == (0, 4, (0, 1, 2, 3, 4))
    assert (again.vocab_size, again.max_length) == (17, 9)
    assert again(["a dog"]).ids.tolist() == [[2, 5, 7, 3]]


def test_cleaning_and_the_end_token(tokenizer_json: str) -> None:
    tokenizer = HFTokenizer(tokenizer_json, clean="canonicalize", strip_end=True)

    assert tokenizer(["A, dog!"]).ids.tolist() == [[2, 5, 7, 0]]


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("A black-and-white dog, RUNNING...", "a black and white dog running"),
        ("<person> rides / walks  (fast);\tend\n", "person rides walks fast end"),
        ("it's 3:30 #today ~ *now*", "it s 3 30 today now"),
        ("word " * 70, " ".join(["word"] * 64)),
        ("Ünïcode 猫 & 50% — kept", "ünïcode 猫 & 50% — kept"),
        ("?!", ""),
    ],
)
def test_plain_words(caption: str, cleaned: str) -> None:
    assert plain_words(caption) == cleaned
    assert torch.equal(BPETokenizer(clean="words")([caption]).ids, BPETokenizer()([cleaned]).ids)


def test_folder(tokenizer_folder: Path) -> None:
    from transformers import AutoTokenizer

    captions = ["a dog", "the big red dog runs"]
    tokenizer = load_tokenizer(str(tokenizer_folder))

    expected = AutoTokenizer.from_pretrained(tokenizer_folder)(captions, padding=True, return_tensors="pt")
    assert torch.equal(tokenizer(captions).ids, expected["input_ids"])
    assert torch.equal(tokenizer(captions).mask, expected["attention_mask"].bool())
    assert tokenizer.max_length == 20
    assert load_tokenizer(str(tokenizer_folder / "tokenizer.json")).mask_id == 4


@pytest.mark.usefixtures("offline")
def test_a_missing_tokenizer_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"could not load tokenizer 'no/such'.*local folder"):
        load_tokenizer("no/such")
