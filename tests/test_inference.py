"""Generation: what is drawn, where it ends, and how it is told."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import linax_like as lx
from linax_like.inference.generate import _advance, _open


KEY = jr.key(0, impl="rbg")
BLOCKS = (
    lx.ResidualBlockConfig(lx.LRUSequenceMixerConfig(4)),
    lx.ResidualBlockConfig(lx.AttentionSequenceMixerConfig(num_heads=2, window=5)),
)
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]
LENGTH = 9


@pytest.fixture(scope="module")
def model():
    stack, head = lx.StackConfig(((BLOCKS, 1),)), lx.LanguageModelHeadConfig(tied=False)
    return lx.LanguageModelConfig(11, 16, stack, head=head, pad_vocab_size_multiple=8).build(KEY)


@pytest.fixture(scope="module")
def read(model):
    """The logits of a whole text, read anew."""
    forward = jax.jit(lambda tokens: model(tokens).logits[:, :11])

    def read(text):
        tokens = np.zeros(len(PROMPTS[1]) + LENGTH, np.int32)  # what comes later changes nothing
        tokens[: len(text)] = text
        return np.asarray(forward(tokens))[: len(text)]

    return read


def test_greedy_generation_is_reading_everything_anew(model, read):
    got = lx.generate(model, PROMPTS, LENGTH, KEY, temperature=0.0)
    assert got.lengths.tolist() == [LENGTH] * 3
    for row, prompt in enumerate(PROMPTS):
        text = [*prompt, *got.tokens[row].tolist()]
        logits = read(text)[len(prompt) - 1 : -1]
        assert text[len(prompt) :] == logits.argmax(-1).tolist()
        scores = jax.nn.log_softmax(logits)[np.arange(LENGTH), text[len(prompt) :]]
        np.testing.assert_allclose(got.log_probabilities[row], scores, atol=1e-5)


def test_a_row_does_not_depend_on_the_others(model):
    first = lx.generate(model, PROMPTS, LENGTH, KEY)
    second = lx.generate(model, [[3, 3], PROMPTS[1], [7, 7, 7]], LENGTH, KEY)
    assert first.tokens[1].tolist() == second.tokens[1].tolist()
    assert first.tokens[2].tolist() != second.tokens[2].tolist()
    assert first.tokens.tolist() == lx.generate(model, PROMPTS, LENGTH, KEY).tokens.tolist()
    other = lx.generate(model, PROMPTS, LENGTH, jr.key(1, impl="rbg"))
    assert first.tokens.tolist() != other.tokens.tolist()
    scored = np.asarray(first.log_probabilities)
    assert ((scored < 0) & np.isfinite(scored)).all()


def test_one_prompt_is_the_first_row(model):
    batch = lx.generate(model, [PROMPTS[0], PROMPTS[1], PROMPTS[2]], LENGTH, KEY)
    one = lx.generate(model, jnp.asarray(PROMPTS[0]), LENGTH, KEY)
    assert one.tokens.shape == one.log_probabilities.shape == (LENGTH,) and one.lengths.shape == ()
    assert one.tokens.tolist() == batch.tokens[0].tolist()


def test_the_callback_hears_what_is_returned_from_the_same_programs(model):
    plain = lx.generate(model, PROMPTS, LENGTH, KEY, temperature=0.7)
    sizes = _open._cached._cache_size(), _advance._cached._cache_size()
    heard = {0: [], 1: [], 2: []}
    hear = lambda row, tokens: heard[row].append(tokens.tolist())
    streamed = lx.generate(model, PROMPTS, LENGTH, KEY, temperature=0.7, callback=hear)
    assert plain.tokens.tolist() == streamed.tokens.tolist()
    assert [sum(heard[row], []) for row in range(3)] == plain.tokens.tolist()
    assert all(len(tokens) == 1 for row in heard.values() for tokens in row)
    assert sizes == (_open._cached._cache_size(), _advance._cached._cache_size())


def test_an_exception_in_the_callback_ends_generation(model):
    def refuse(row, tokens):
        raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        lx.generate(model, PROMPTS, LENGTH, KEY, callback=refuse)


def test_rows_stop_and_repetition_is_penalized(model, read):
    options = {"temperature": 0.0, "repetition_penalty": 1.7, "padding": 10}

    def expected(prompt, stops):
        text = list(prompt)
        while len(text) < len(prompt) + LENGTH and text[len(prompt) :][-1:] not in stops:
            logits = read(text)[-1]
            seen = np.isin(np.arange(11), text)
            penalized = np.where(logits > 0, logits / 1.7, logits * 1.7)
            text.append(int(np.where(seen, penalized, logits).argmax()))
        return text[len(prompt) :]

    unstopped = [expected(prompt, []) for prompt in PROMPTS]
    stop = unstopped[0][1]
    assert stop != unstopped[0][0]
    rounds = []
    hear = lambda row, tokens: rounds.append(row)
    got = lx.generate(model, PROMPTS, LENGTH, KEY, **options, stop_tokens=[stop], callback=hear)
    for row, prompt in enumerate(PROMPTS):
        tokens = expected(prompt, [[stop]])
        assert got.lengths[row] == len(tokens) == rounds.count(row)
        assert got.tokens[row].tolist() == tokens + [10] * (LENGTH - len(tokens))
        assert not got.log_probabilities[row, len(tokens) :].any()
    assert got.lengths.tolist() != [LENGTH] * 3


def test_bad_requests_say_why(model):
    prompt = jnp.asarray([1, 2, 3])
    for prompts, options, law in (
        (prompt[:0], {}, "at least one token"),
        ([], {}, "at least one token"),
        ([[1, 2], []], {}, "at least one token"),
        ([prompt, prompt[None]], {}, r"shape \(1, 3\)"),
        (prompt + 0.5, {}, "must hold integers"),
        (prompt + 9, {}, "knows the tokens 0 to 10"),
        ([prompt, -prompt], {}, "the token -1"),
        (prompt, {"stop_tokens": [11]}, "the token 11"),
        (prompt, {"padding": 11}, "the token 11"),
        (prompt, {"length": 0}, "`length` must be at least 1"),
        (prompt, {"temperature": -1.0}, "`temperature` must be 0 or positive"),
        (prompt, {"temperature": float("nan")}, "`temperature`"),
        (prompt, {"top_k": 0}, "`top_k`"),
        (prompt, {"top_p": 1.5}, "`top_p`"),
        (prompt, {"min_p": 0.0}, "`min_p`"),
        (prompt, {"repetition_penalty": 0.0}, "`repetition_penalty`"),
        (prompt, {"draft_length": 0}, "`draft_length`"),
    ):
        with pytest.raises(ValueError, match=law):
            lx.generate(model, prompts, options.pop("length", 3), KEY, **options)


def test_models_that_cannot_generate_say_why(model):
    attention = lx.ResidualBlockConfig(lx.AttentionSequenceMixerConfig(causal=False))
    stack = lx.StackConfig((((attention,), 1),)).build(16, KEY)
    blind = eqx.tree_at(lambda m: m.stack, model, stack)
    with pytest.raises(ValueError, match="needs a causal model"):
        lx.generate(blind, [1, 2], 3, KEY)
    with pytest.raises(ValueError, match="needs a causal `draft`"):
        lx.generate(model, [1, 2], 3, KEY, draft=blind)
    small = eqx.filter_eval_shape(
        lx.LanguageModelConfig(7, 16, lx.StackConfig(((BLOCKS, 1),))).build, KEY
    )
    with pytest.raises(ValueError, match="`draft` knows 7 tokens and the model 11"):
        lx.generate(model, [1, 2], 3, KEY, draft=small)


@pytest.mark.parametrize("limited", ["mixer", "positions"])
def test_as_many_tokens_as_a_model_has_places_for(limited):
    """The last one is drawn, and not read."""
    mixer = lx.LRUSequenceMixerConfig(4)
    embedding = lx.TokenEmbeddingConfig(positions=lx.LearnedPositionsConfig(8))
    if limited == "mixer":
        mixer, embedding = lx.LinearSequenceMixerConfig(8), lx.TokenEmbeddingConfig()
    stack = lx.StackConfig.from_layers([lx.ResidualBlockConfig(mixer, None)])
    model = lx.LanguageModelConfig(11, 8, stack, embedding).build(KEY)
    got = lx.generate(model, [1, 2, 3, 4], 5, KEY)
    assert np.isfinite(got.log_probabilities).all()
    with pytest.raises(ValueError, match="at most `max_length=8` positions"):
        lx.generate(model, [1, 2, 3, 4], 6, KEY)
