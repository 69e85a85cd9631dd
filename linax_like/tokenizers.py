"""From text to tokens and back: bytes, or the `tokenizer.json` of a Hugging Face folder."""

import abc
import codecs
import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np


REPLACEMENT = "\ufffd"  # what stands for bytes that are no text

TokenNumbers = Iterable[int | np.integer]


class AbstractTokenizer(abc.ABC):
    """Maps text to tokens and back.

    - `vocab_size`: tokens are below this.
    - `stop_tokens`: those that end a text.
    """

    vocab_size: int
    stop_tokens: tuple[int, ...]

    @abc.abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text, int32."""

    @abc.abstractmethod
    def decode(self, tokens: TokenNumbers) -> str:
        """The text of all the tokens."""

    @abc.abstractmethod
    def stream(self) -> "AbstractTextStream":
        """What decodes tokens while they come."""


class AbstractTextStream(abc.ABC):
    """Decodes tokens as they come, and holds back what is not yet a whole character."""

    @abc.abstractmethod
    def push(self, tokens: TokenNumbers) -> str:
        """The text that these tokens complete."""

    @abc.abstractmethod
    def finish(self) -> str:
        """What was still held back."""


class ByteTokenizer(AbstractTokenizer):
    """UTF-8, each byte a token."""

    vocab_size = 256
    stop_tokens = ()

    def encode(self, text: str) -> np.ndarray:
        # A shell hands over bytes that are no UTF-8 as lone surrogates.
        return np.frombuffer(text.encode(errors="surrogateescape"), np.uint8).astype(np.int32)

    def decode(self, tokens: TokenNumbers) -> str:
        """Bytes that are no UTF-8, and tokens that are no bytes, become replacement characters."""
        stream = self.stream()
        return stream.push(tokens) + stream.finish()

    def stream(self) -> "ByteStream":
        return ByteStream()


class ByteStream(AbstractTextStream):
    """Of `ByteTokenizer`."""

    def __init__(self):
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, tokens: TokenNumbers) -> str:
        return "".join(self._push(int(token)) for token in tokens)

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)

    def _push(self, token: int) -> str:
        if 0 <= token < 256:
            return self._decoder.decode(bytes([token]))
        return self.finish() + REPLACEMENT


class HuggingFaceTokenizer(AbstractTokenizer):
    """A `tokenizers.Tokenizer`. Special tokens are read from text, and left out of it.

    - `stop_tokens`: what the folder's `generation_config.json` or `config.json` calls `eos_token_id`.
    """

    def __init__(self, folder: str | os.PathLike):
        self._tokenizer = _open(Path(folder) / "tokenizer.json")
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=-1) + 1  # with gaps
        self.stop_tokens = _stop_tokens(Path(folder))

    def encode(self, text: str) -> np.ndarray:
        return np.asarray(self._tokenizer.encode(text).ids, np.int32)

    def decode(self, tokens: TokenNumbers) -> str:
        return self._tokenizer.decode([int(token) for token in tokens])

    def stream(self) -> "HuggingFaceStream":
        return HuggingFaceStream(self)


class HuggingFaceStream(AbstractTextStream):
    """Of `HuggingFaceTokenizer`.

    A token's text depends on those before it (a space, half a character): decoded are the tokens
    told last and those since, and what they add to the former is new.
    """

    def __init__(self, tokenizer: HuggingFaceTokenizer):
        self._tokenizer = tokenizer
        self._told: list[int] = []
        self._since: list[int] = []

    def push(self, tokens: TokenNumbers) -> str:
        self._since += [int(token) for token in tokens]
        text = self._new_text()
        if not text or text.endswith(REPLACEMENT):
            return ""
        self._told, self._since = self._since, []
        return text

    def finish(self) -> str:
        text = self._new_text()
        self._told, self._since = [], []
        return text

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._told)
        return self._tokenizer.decode([*self._told, *self._since])[len(before) :]


def load_tokenizer(folder: str | os.PathLike) -> HuggingFaceTokenizer:
    """The tokenizer of a folder that holds a `tokenizer.json`.

    **Raises:** `ValueError` if there is none, if it is damaged, or without the extra `huggingface`.
    """
    return HuggingFaceTokenizer(folder)


def _open(path: Path):
    if not path.is_file():
        raise ValueError(f"`{path.parent}` holds no `tokenizer.json`.")
    try:
        import tokenizers
    except ImportError:
        raise ValueError(
            f"`{path}` needs the package `tokenizers`, which is not installed: "
            'pip install "linax_like[huggingface]".'
        ) from None
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises no narrower one
        raise ValueError(f"`{path}` is not a tokenizer: {error}.") from None


def _stop_tokens(folder: Path) -> tuple[int, ...]:
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            ids = json.loads(path.read_text()).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise ValueError(f"`{path}` is not a JSON object: {error}.") from None
        if ids is None:
            continue
        ids = ids if isinstance(ids, list) else [ids]
        if not all(type(id) is int for id in ids):
            raise ValueError(f"`{path}`: `eos_token_id` must be whole numbers. It is {ids}.")
        return tuple(ids)
    return ()
