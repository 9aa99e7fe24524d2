"""Captions to ids: Hugging Face tokenizers as one JSON string, and the BPE tokenizer included in open_clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from itr.backbones.words import Words, clip_words, is_plain, pad_rows, special_frame
from itr.errors import UserError
from itr.types import Tokens
from itr.weights.hub import hub_or_cache, loading_failure, ways_out
from itr.weights.packages import local_source

Clean = Literal["lower", "whitespace", "canonicalize", "words"]
MAX_WORDS = 64
DEFAULT_MAX_LENGTH = 512  # if neither the tokenizer nor the tower has a limit


class HFTokenizer:
    """A fast tokenizer defined by one JSON string with its vocabulary, padding and truncation.

    It needs neither transformers nor other files, so it can be stored in a checkpoint and sent to workers.

    Args:
        serialized: the string from `tokenizers.Tokenizer.to_str` or a `tokenizer.json`. The mask token is found by its
            name, padding by the `padding` section.
        max_length: longest caption in tokens; by default as in the string.
        full_length: pad every batch to `max_length`; by default as in the string.
        clean: how to clean captions before, see `clean_function`.
        strip_end: replace the end token with 0, as some towers of open_clip require.
    """

    def __init__(
        self,
        serialized: str,
        max_length: int | None = None,
        full_length: bool | None = None,
        clean: Clean | None = None,
        strip_end: bool = False,
    ) -> None:
        from tokenizers import Tokenizer

        self.fast = Tokenizer.from_str(serialized)
        self.clean = clean
        padding: dict[str, Any] = self.fast.padding or {}
        special = {token.content: id for id, token in self.fast.get_added_tokens_decoder().items() if token.special}
        self.max_length = int(max_length or (self.fast.truncation or {}).get("max_length", DEFAULT_MAX_LENGTH))
        self.full_length = bool(padding.get("length")) if full_length is None else full_length
        self.pad_id = int(padding.get("pad_id", _first(special, "<pad>", "[PAD]") or 0))
        self.mask_id = _first(special, "[MASK]", "<mask>")
        self.strip_id = _first(special, "[SEP]", "</s>") if strip_end else None
        self.special_ids = tuple(sorted({self.pad_id, *special.values()}))
        self.vocab_size = 1 + max(self.fast.get_vocab(with_added_tokens=True).values())
        self.fast.no_truncation()
        self.fast.no_padding()
        self.frame = special_frame(self.fast)
        self._words = Words(self._encode)
        self._pad_token = padding.get("pad_token") or self.fast.id_to_token(self.pad_id) or "[PAD]"
        self.limit(self.max_length)

    def limit(self, max_length: int) -> None:
        """Truncate captions to that many tokens from now on, keeping their end token."""
        self.max_length = max_length
        self.fast.enable_truncation(max_length)
        length = max_length if self.full_length else None
        self.fast.enable_padding(pad_id=self.pad_id, pad_token=self._pad_token, length=length)
        self._words.known.clear()  # long words were truncated to the old limit

    def to_json(self) -> str:
        """The string that defines the same `HFTokenizer`, except for `clean` and `strip_end`."""
        return str(self.fast.to_str())

    def __call__(self, captions: Sequence[str]) -> Tokens:
        """Tokenize and pad to the longest; a caption without tokens gets one padding token."""
        texts = [_storable(caption) for caption in captions]
        if self.clean is not None:
            function = clean_function(self.clean)
            texts = [function(text) for text in texts]
        width = (self.fast.padding or {}).get("length") or 0
        ids, mask = pad_rows([self._row(text) for text in texts], self.pad_id, width)
        if self.strip_id is not None:
            ids = ids.masked_fill(ids == self.strip_id, 0)
        mask[:, :1] = True
        return Tokens(ids=ids, mask=mask)

    def _row(self, text: str) -> list[int]:
        """The ids of a text with start and end tokens; word by word if that gives the same result."""
        if self.frame is not None and is_plain(text):
            start, end = self.frame
            room = self.max_length - len(start) - len(end)
            if room > 0:
                return [*start, *self._words(text)[:room], *end]
        return self._encode(text, True)

    def _encode(self, text: str, framed: bool = False) -> list[int]:
        found = self.fast.encode(text, add_special_tokens=framed)
        return list(found.ids[: sum(found.attention_mask)])


class BPETokenizer:
    """CLIP's lower-case byte-pair encoding, which is included in open_clip and needs no network access.

    Args:
        max_length: longest caption in tokens, start and end included.
        full_length: pad every batch to `max_length`, for towers whose embedding depends on padding.
        clean: how to clean captions before, see `clean_function`.
    """

    start_id = 49406
    end_id = 49407
    vocab_size = 49408
    pad_id = 0  # also the id of "!": a tower that treats this id as padding needs the mask
    mask_id: int | None = None
    special_ids: tuple[int, ...] = (start_id, end_id)

    def __init__(self, max_length: int = 77, full_length: bool = False, clean: Clean = "lower") -> None:
        self.max_length = max_length
        self.full_length = full_length
        self.clean = clean
        self._words: Words | None = None

    def limit(self, max_length: int) -> None:
        """Truncate captions to that many tokens from now on, keeping their end token."""
        self.max_length = max_length

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_words": None}  # megabytes of merges, which each worker loads itself

    def __call__(self, captions: Sequence[str]) -> Tokens:
        """Tokenize and pad to the longest, or to `max_length` if `full_length` is set."""
        if self._words is None:
            self._words = clip_words()
        clean, words = clean_function(self.clean), self._words
        bodies = [words(clean(_storable(caption)))[: self.max_length - 2] for caption in captions]
        rows = [[self.start_id, *body, self.end_id] for body in bodies]
        return Tokens(*pad_rows(rows, self.pad_id, self.max_length if self.full_length else 0))


def make_tokenizer(name: str | None, serialized: str | None) -> HFTokenizer | BPETokenizer:
    """The tokenizer for a JSON string or a name; CLIP's if neither is given."""
    if serialized is not None:
        return HFTokenizer(serialized)
    return BPETokenizer() if name is None else load_tokenizer(name)


def load_tokenizer(name: str, max_length: int | None = None, full_length: bool = False) -> HFTokenizer:
    """Load a tokenizer from a local folder or file, a package (`offline/NAME`), or the hub.

    Raises:
        UserError: it could not be loaded, or has no fast version.
    """
    if Path(name).is_file():
        return HFTokenizer(Path(name).read_text(encoding="utf-8"), max_length, full_length)
    source = local_source(name, "text")
    try:
        with hub_or_cache(source):
            loaded = _loaded(source)
    except Exception as error:  # the hub and its clients raise many unrelated types
        raise UserError(
            f"could not load tokenizer {name!r}: it is neither a tokenizer.json nor a local folder with tokenizer "
            f"files, and {loading_failure(source, error)}. {ways_out('text')}"
        ) from error
    if not loaded.is_fast:
        raise UserError(f"tokenizer {name!r} has no fast version; pass a folder with a tokenizer.json")
    fast, pad_id = loaded.backend_tokenizer, loaded.pad_token_id or 0
    fast.enable_padding(pad_id=pad_id, pad_token=loaded.pad_token or loaded.convert_ids_to_tokens(pad_id))
    limit = loaded.model_max_length if loaded.model_max_length < 1e6 else DEFAULT_MAX_LENGTH
    return HFTokenizer(fast.to_str(), max_length or limit, full_length)


def _loaded(name: str) -> Any:
    """The tokenizer of a folder or name, by its own class, or by its tokenizer.json if that class needs more."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        loaded: Any = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # SigLIP's class needs sentencepiece and its file, though a fast version may be there
        if not isinstance(error, ImportError) and not Path(name, "tokenizer.json").is_file():
            raise
        loaded = None
    if loaded is not None and loaded.is_fast:
        return loaded
    try:
        return PreTrainedTokenizerFast.from_pretrained(name)
    except Exception:  # there is no such file
        if loaded is None:
            raise
        return loaded


def clean_function(kind: Clean) -> Callable[[str], str]:
    """A function that cleans captions before tokenization.

    `lower`, `whitespace` and `canonicalize` are open_clip's: they fix encodings and HTML, and collapse whitespace; the
    first also lower-cases, the last also removes punctuation. `words` is `plain_words`.
    """
    if kind == "words":
        return plain_words
    return partial(_cleaned, kind)


def _cleaned(kind: str, text: str) -> str:
    """open_clip's cleaning; printable ASCII without & has no encodings or HTML to fix, so it skips that slow step."""
    from open_clip import tokenizer as clip

    if not is_plain(text) or "&" in text:
        return cast(str, clip.get_clean_fn(kind)(text))
    if kind == "canonicalize":
        return cast(str, clip.canonicalize_text(text))
    text = " ".join(text.split())
    return text.lower() if kind == "lower" else text


def plain_words(caption: str) -> str:
    """Lower case, spaces for punctuation, and the first 64 words: how CUSA's authors clean captions, after ALBEF.

    NOTE: a caption with only punctuation becomes empty here; their code raises an error.
    """
    text = caption.lower().translate(_TO_BLANKS).replace("<person>", "person")
    return " ".join(text.split()[:MAX_WORDS])


_TO_BLANKS = str.maketrans(dict.fromkeys(",.'!?\"()*#:;~-/", " "))


def _storable(caption: str) -> str:
    """Replace lone surrogates, which are not valid UTF-8 and would make either tokenizer fail."""
    return caption.encode("utf-8", "replace").decode("utf-8")


def _first(table: dict[str, int], *names: str) -> int | None:
    return next((table[name] for name in names if name in table), None)
