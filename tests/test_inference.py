"""Sampling and generation."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import linax_like as lx
from linax_like.inference import generate, keep_top_k, keep_top_p, sample


KEY = jr.key(0, impl="rbg")
BLOCKS = (
    lx.ResidualBlockConfig(lx.LRUSequenceMixerConfig(4)),
    lx.ResidualBlockConfig(lx.AttentionSequenceMixerConfig(num_heads=2, window=5)),
)


@pytest.fixture(scope="module")
def model():
    return lx.LanguageModelConfig(11, 16, lx.StackConfig(((BLOCKS, 1),))).build(KEY)


def test_greedy_generation_is_reading_everything_anew(model):
    prompt = jnp.asarray([1, 2, 3])
    got = generate(model, prompt, 9, KEY, temperature=0.0)
    text = prompt
    for _ in range(9):
        text = jnp.append(text, jnp.argmax(model(text).logits[-1]))
    assert got.tolist() == text[3:].tolist()


def test_generation_compiles_once(model):
    prompt = jnp.asarray([1, 2, 3, 4])
    with jax.log_compiles(False):
        generate(model, prompt, 6, KEY)
        before = generate_cache_size()
        generate(model, prompt + 1, 6, jr.key(1, impl="rbg"), temperature=0.3)
        assert generate_cache_size() == before


def generate_cache_size():
    from linax_like.inference.generate import _generate

    return _generate._cached._cache_size()


def test_cuts_keep_the_most_likely():
    logits = jnp.log(jnp.asarray([0.1, 0.4, 0.2, 0.3]))
    assert jnp.isfinite(keep_top_k(logits, 2)).tolist() == [False, True, False, True]
    assert jnp.isfinite(keep_top_k(logits, 9)).all()
    assert jnp.isfinite(keep_top_p(logits, 0.69)).tolist() == [False, True, False, True]
    assert jnp.isfinite(keep_top_p(logits, 0.71)).tolist() == [False, True, True, True]
    assert jnp.isfinite(keep_top_p(logits, 0.01)).tolist() == [False, True, False, False]
    assert jnp.isfinite(keep_top_p(logits, 1.0)).all()


def test_samples_follow_the_tempered_distribution():
    p = np.asarray([0.5, 0.3, 0.2])
    keys = jr.split(jr.key(5), 20_000)
    for temperature in (1.0, 0.5):
        draw = jax.jit(jax.vmap(lambda key, t: sample(key, jnp.log(p), temperature=t), (0, None)))
        counts = np.bincount(draw(keys, temperature), minlength=3) / len(keys)
        expected = p ** (1 / temperature)
        np.testing.assert_allclose(counts, expected / expected.sum(), atol=0.02)


def test_bad_requests_say_why(model):
    prompt = jnp.asarray([1, 2, 3])
    for call, law in (
        (lambda: generate(model, prompt[:0], 3, KEY), "at least one token"),
        (lambda: generate(model, prompt + 9, 3, KEY), "knows the tokens 0 to 10"),
        (lambda: generate(model, prompt, 0, KEY), "length"),
        (lambda: generate(model, prompt, 3, KEY, temperature=-1.0), "temperature"),
        (lambda: generate(model, prompt, 3, KEY, temperature=float("nan")), "temperature"),
        (lambda: generate(model, prompt, 3, KEY, top_k=0), "top_k"),
        (lambda: generate(model, prompt, 3, KEY, top_p=1.5), "top_p"),
    ):
        with pytest.raises(ValueError, match=law):
            call()
    attention = lx.ResidualBlockConfig(lx.AttentionSequenceMixerConfig(causal=False))
    blind = eqx.tree_at(
        lambda m: m.stack, model, lx.StackConfig((((attention,), 1),)).build(16, KEY)
    )
    with pytest.raises(ValueError, match="causal"):
        generate(blind, prompt, 3, KEY)
