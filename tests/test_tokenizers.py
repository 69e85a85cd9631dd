"""Tokenizers: bytes, and files of the package `tokenizers`."""

import json
import sys

import numpy as np
import pytest

import linax_like as lx


TEXTS = ["", "plain", "Thé naïve 語 🦜, twice 🦜", 'line\nline\ttab \\ "quotes" \0']


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A byte-level BPE trained on a sentence, as a Hugging Face folder holds it."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=alphabet,
        special_tokens=["<end>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog " * 9], trainer)
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "config.json").write_text(json.dumps({"eos_token_id": 0}))
    return path


@pytest.fixture(params=["bytes", "file"])
def tokenizer(request):
    if request.param == "bytes":
        return lx.ByteTokenizer()
    return lx.load_tokenizer(request.getfixturevalue("folder"))


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_undoes_encoding_at_once_and_token_by_token(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokens.dtype == np.int32 and (tokens < tokenizer.vocab_size).all()
    assert tokenizer.decode(tokens) == text
    for size in (1, 3):
        stream = tokenizer.stream()
        pieces = [stream.push(tokens[i : i + size]) for i in range(0, len(tokens), size)]
        assert all("\ufffd" not in piece for piece in pieces)
        assert "".join(pieces) + stream.finish() == text


def test_a_token_may_be_told_otherwise_at_the_beginning(tmp_path):
    """Its space belongs to it, but not as the first of a text."""
    import tokenizers

    words = tokenizers.models.WordLevel({"?": 0, "▁one": 1, "▁two": 2}, unk_token="?")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    stream = lx.load_tokenizer(tmp_path).stream()
    assert [stream.push([token]) for token in (1, 2, 1)] == ["one", " two", " one"]


def test_all_tokens_are_below_the_size_of_the_vocabulary(tmp_path):
    """Though some numbers are of no token."""
    import tokenizers

    words = tokenizers.models.WordLevel({"?": 3, "one": 0, "two": 7}, unk_token="?")
    tokenizers.Tokenizer(words).save(str(tmp_path / "tokenizer.json"))
    assert lx.load_tokenizer(tmp_path).vocab_size == 8


def test_broken_characters_are_replaced(tokenizer):
    tokens = [*tokenizer.encode("a🦜")[:-1], *tokenizer.encode("b")]
    assert tokenizer.decode(tokens) == "a\ufffdb"
    stream = tokenizer.stream()
    assert [stream.push([token]) for token in tokens] == ["a", "", "", "", "\ufffdb"]
    assert stream.push(tokens[1:3]) == "" and stream.finish() == "\ufffd"


def test_bytes_of_a_shell_and_tokens_that_are_no_bytes():
    tokenizer = lx.ByteTokenizer()
    assert tokenizer.encode("é\udcff").tolist() == [0xC3, 0xA9, 0xFF]
    assert tokenizer.decode([65, 0xFF, 66, 300, 0xC3, 300]) == "A\ufffdB\ufffd\ufffd\ufffd"


def test_files_know_their_specials(folder, tmp_path):
    tokenizer = lx.load_tokenizer(folder)
    assert tokenizer.vocab_size == 289 and tokenizer.stop_tokens == (0,)
    assert tokenizer.encode("the<end>")[-1] == 0
    assert tokenizer.decode([*tokenizer.encode("the"), 0]) == "the"
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    assert lx.load_tokenizer(tmp_path).stop_tokens == ()
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 0}))
    assert lx.load_tokenizer(tmp_path).stop_tokens == (3, 4)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": "2"}))
    with pytest.raises(ValueError, match=r"`eos_token_id` must be whole numbers. It is \['2'\]"):
        lx.load_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(ValueError, match="generation_config.json` is not a JSON object"):
        lx.load_tokenizer(tmp_path)


def test_folders_without_a_tokenizer_say_why(folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="holds no `tokenizer.json`"):
        lx.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        lx.load_tokenizer(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"linax_like\[huggingface\]"):
        lx.load_tokenizer(folder)
