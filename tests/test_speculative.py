"""Speculative decoding: a draft changes the speed, never the text."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import linax_like as lx
from linax_like.inference import Sampling
from linax_like.inference.rows import open_row, Setup
from linax_like.inference.speculative import speculate_row


KEY = jr.key(0, impl="rbg")
LRU = lx.LRUSequenceMixerConfig(4)
ATTENTION = lx.AttentionSequenceMixerConfig(num_heads=2)


def build(*mixers, vocabulary: int, seed: int = 0):
    blocks = tuple(lx.ResidualBlockConfig(mixer, channel_mixer=None) for mixer in mixers)
    stack, head = lx.StackConfig(((blocks, 1),)), lx.LanguageModelHeadConfig(tied=False)
    config = lx.LanguageModelConfig(vocabulary, 8, stack, head=head)
    return config.build(jr.key(seed, impl="rbg"))


def disturbed(model, size: float):
    """A draft that often agrees with the model, and often does not."""
    leaves, tree = jax.tree.flatten(model)
    noise = np.random.default_rng(0)
    return tree.unflatten([x + size * noise.standard_normal(x.shape, np.float32) for x in leaves])


def test_greedy_text_is_the_models():
    """Of a model whose layers have the kinds of state that there are."""
    model = build(lx.MambaSequenceMixerConfig(4), ATTENTION, vocabulary=11)
    prompts, length = [[1, 2, 3], [4, 5, 6], [9, 0, 10]], 24
    options = {"temperature": 0.0, "repetition_penalty": 2.0, "stop_tokens": [2]}
    plain = lx.generate(model, prompts, length, KEY, **options)
    sizes = []
    hear = lambda row, tokens: sizes.append(len(tokens))
    draft = {"draft": disturbed(model, 0.05), "draft_length": 3}
    got = lx.generate(model, prompts, length, KEY, **options, **draft, callback=hear)
    assert got.tokens.tolist() == plain.tokens.tolist()
    assert got.lengths.tolist() == plain.lengths.tolist()
    np.testing.assert_allclose(got.log_probabilities, plain.log_probabilities, atol=1e-5)
    assert {1, 4} <= set(sizes) <= {1, 2, 3, 4}  # nothing kept, everything, and what is between


def test_a_draft_is_penalised_for_repetition_as_the_model_is():
    """So the model itself, as its own draft, proposes nothing that is not kept."""
    model, sizes = build(LRU, vocabulary=24), []
    options = {"temperature": 0.0, "repetition_penalty": 50.0, "draft": model, "draft_length": 3}
    hear = lambda row, tokens: sizes.append(len(tokens))
    text = lx.generate(model, [1, 2, 3], 13, KEY, **options, callback=hear).tokens
    assert sizes == [1, 4, 4, 4]
    assert len({1, 2, 3, *text.tolist()}) == 16


def test_states_are_those_of_what_was_kept():
    """Of the model and of the draft, after a block of which not all was kept."""
    model, prompt = build(LRU, vocabulary=11), jnp.asarray([1, 2, 3])
    draft = disturbed(model, 0.3)
    setup = Setup(model, draft, 3, Sampling(temperature=0.0), jnp.zeros((0,), jnp.int32))
    row = jax.jit(lambda: open_row(setup, KEY, prompt, None, None, 24, jnp.int32(0)))()
    advance = jax.jit(lambda row: speculate_row(setup, row))
    kept = []
    for _ in range(6):
        before, row = row.length, advance(row)
        kept.append(int(row.length - before))
    assert min(kept) < 4
    read = jnp.concatenate([prompt, row.tokens[: row.length - 1]])  # all but the newest
    for one, state in ((model, row.state), (draft, row.draft_state)):
        expected, _ = eqx.filter_jit(one.prefill)(one.init_state(len(read)), read)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), state, expected)


@pytest.mark.parametrize("drafted", [False, True], ids=["alone", "drafted"])
def test_sampled_texts_are_distributed_as_the_models(drafted):
    """All texts of four tokens, counted, beside their probabilities: a chi-square test."""
    prompt, length, rows = [0, 2], 4, 20_000
    model, draft = build(LRU, vocabulary=3), None
    if drafted:
        draft = build(lx.MambaSequenceMixerConfig(2), vocabulary=3, seed=4)
    texts = np.asarray(list(itertools.product(range(3), repeat=length)))
    whole = np.concatenate([np.tile(prompt, (len(texts), 1)), texts], 1)
    logits = jax.jit(jax.vmap(model))(jnp.asarray(whole)).logits[:, len(prompt) - 1 : -1]
    scores = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits / 1.5)), texts[..., None], -1)
    expected = rows * np.exp(np.sum(scores, axis=(1, 2), dtype=np.float64))
    assert expected.sum() == pytest.approx(rows, rel=1e-4)
    got = lx.generate(
        model, [prompt] * rows, length, KEY, temperature=1.5, draft=draft, draft_length=2
    )
    counts = np.bincount(np.asarray(got.tokens) @ 3 ** np.arange(length)[::-1], minlength=81)
    chi_square = np.sum((counts - expected) ** 2 / expected)
    assert expected.min() > 5 and chi_square < 124.8  # exceeded once in a thousand, for 80 degrees
