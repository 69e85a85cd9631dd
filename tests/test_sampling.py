"""From logits to a token."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from linax_like.inference import keep_min_p, keep_top_k, keep_top_p, sample, Sampling
from linax_like.inference.sampling import adjust


LOGITS = jnp.log(jnp.asarray([0.1, 0.4, 0.2, 0.3]))


def test_cuts_keep_the_most_likely():
    for cut, kept in (
        (keep_top_k(LOGITS, 2), "0101"),
        (keep_top_k(LOGITS, 9), "1111"),
        (keep_top_p(LOGITS, 0.69), "0101"),
        (keep_top_p(LOGITS, 0.71), "0111"),
        (keep_top_p(LOGITS, 0.01), "0100"),
        (keep_top_p(LOGITS, 1.0), "1111"),
        (keep_min_p(LOGITS, 0.7), "0101"),
        (keep_min_p(LOGITS, 0.49), "0111"),
        (keep_min_p(LOGITS, 1.0), "0100"),
    ):
        assert "".join("01"[bool(b)] for b in jnp.isfinite(cut)) == kept
        np.testing.assert_array_equal(cut[jnp.isfinite(cut)], LOGITS[jnp.isfinite(cut)])


def test_the_fewest_that_reach_top_p():
    assert jnp.isfinite(keep_top_p(jnp.zeros(4), 0.5)).tolist() == [True, True, False, False]


def test_samples_follow_the_tempered_distribution():
    p = np.asarray([0.5, 0.3, 0.2])
    keys = jr.split(jr.key(5), 20_000)
    draw = jax.jit(jax.vmap(lambda key, t: sample(key, jnp.log(p), temperature=t), (0, None)))
    for temperature in (1.0, 0.5):
        counts = np.bincount(draw(keys, temperature), minlength=3) / len(keys)
        expected = p ** (1 / temperature)
        np.testing.assert_allclose(counts, expected / expected.sum(), atol=0.02)


def test_temperature_zero_is_greedy_and_small_ones_do_not_overflow():
    logits = jnp.asarray([1e3, -1e3, 1e3 + 1])
    for temperature in (0.0, 1e-38, 1e-6):
        p = jax.nn.softmax(adjust(logits, Sampling(temperature=temperature)))
        assert p.tolist() == [0, 0, 1]


def test_cuts_come_after_temperature_in_the_documented_order():
    sampling = Sampling(temperature=0.5, top_k=3, top_p=0.6, min_p=0.9)
    squared = np.asarray([0.01, 0.16, 0.04, 0.09])
    kept = np.asarray(
        [False, True, False, True]
    )  # 0.16 of 0.29 does not reach 0.6, with 0.09 does
    p = jax.nn.softmax(adjust(LOGITS, sampling._replace(min_p=None)))
    np.testing.assert_allclose(p, squared * kept / squared[kept].sum(), rtol=1e-5)
    assert jax.nn.softmax(adjust(LOGITS, sampling)).tolist() == [0, 1, 0, 0]


def test_half_precision_is_widened_first():
    logits = jnp.asarray([1.0, 0.0], jnp.bfloat16)
    p = jax.nn.softmax(adjust(logits, Sampling(temperature=3.0)))
    np.testing.assert_allclose(p[0], 1 / (1 + np.exp(-1 / 3)), rtol=1e-6)


def test_what_was_seen_is_penalized():
    logits = jnp.asarray([2.0, 1.0, -1.0, -1.0])
    seen = jnp.asarray([True, False, True, False])
    got = adjust(logits, Sampling(repetition_penalty=4.0), seen)
    expected = np.asarray([0.5, 1.0, -4.0, -1.0])
    np.testing.assert_allclose(got, expected - expected.max(), rtol=1e-6)


def test_something_is_always_kept():
    logits = jnp.asarray([0.0, 5.0, 1.0])
    assert sample(jr.key(0), logits, top_p=0.0) == 1
    with pytest.raises(ValueError, match="`top_k` must be at least 1. Received 0"):
        sample(jr.key(0), logits, top_k=0)


def test_all_of_the_probability_is_every_token():
    logits = np.random.default_rng(0).normal(size=50_000).astype(np.float32)
    assert np.isfinite(keep_top_p(jnp.asarray(logits), 1.0)).all()
