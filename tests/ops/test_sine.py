"""Sine and cosine: NumPy's in float64, at small angles and large ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linax_like.ops.sine import cosine, sine


@pytest.mark.parametrize("limit", [4.0, 1e3, 3e4])
def test_sine_cosine_and_their_derivatives(limit):
    x = np.random.default_rng(0).uniform(-limit, limit, 20_000).astype(np.float32)
    exact = x.astype(np.float64)
    got = jax.jit(jax.vmap(lambda x: (*jax.value_and_grad(sine)(x), jax.grad(cosine)(x))))(x)
    for g, e in zip(got, (np.sin(exact), np.cos(exact), -np.sin(exact)), strict=True):
        assert np.max(np.abs(g - e)) <= 2.5e-7


def test_whatever_comes_the_result_is_a_sine_s():
    x = jnp.asarray([1e8, -3e12, 3e38, 0.0, -0.0], jnp.float32)
    assert jnp.max(jnp.abs(sine(x))) <= 1 + 1e-6
    assert sine(x)[3] == 0 and jnp.isnan(sine(jnp.float32(jnp.inf)))


def test_float64_is_exact_to_rounding():
    with jax.enable_x64():
        x = jnp.linspace(-50.0, 50.0, 1001)
        np.testing.assert_allclose(sine(x), np.sin(np.asarray(x)), atol=1e-14)
