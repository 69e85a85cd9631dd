"""Normalisations and position encodings: formulas, dtypes, gradients where they are delicate."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import linax_like as lx
from linax_like.positions import rope, sinusoidal


KEY = jr.key(0, impl="rbg")
NORMS = [lx.RMSNormConfig(), lx.LayerNormConfig(), lx.LayerNormConfig(use_bias=False)]


@pytest.fixture(scope="module")
def x():
    return 3 + 2 * jr.normal(KEY, (5, 16))


def test_rms_norm(x):
    norm = lx.RMSNormConfig(eps=0.5).build(16, KEY)
    expected = x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + 0.5)
    np.testing.assert_allclose(norm(x), expected, rtol=1e-5)


def test_layer_norm(x):
    norm = lx.LayerNormConfig(eps=0.5).build(16, KEY)
    expected = (x - np.mean(x, -1, keepdims=True)) / np.sqrt(np.var(x, -1, keepdims=True) + 0.5)
    np.testing.assert_allclose(norm(x), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("config", NORMS)
def test_norms_compute_in_float32_and_return_the_input_dtype(config, x):
    norm = config.build(16, KEY)
    low = norm((100 * x).astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    rounded = (100 * x).astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_allclose(low.astype(jnp.float32), norm(rounded), atol=0.02)
    with jax.enable_x64(True):
        assert norm(jnp.asarray(x, jnp.float64)).dtype == jnp.float64


@pytest.mark.parametrize("config", NORMS)
@pytest.mark.parametrize("scale", [0, 1e-20, 1e3])
def test_norms_have_finite_gradients(config, scale, x):
    norm = config.build(16, KEY)
    gradient = jax.grad(lambda x: jnp.sum(norm(x) ** 2))(scale * x)
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("centred", [False, True])
def test_norms_have_the_derivative_of_their_formula(centred, x):
    """Backward, forward, and by differences of the formula in float64."""
    norm = (lx.LayerNormConfig if centred else lx.RMSNormConfig)(eps=0.5).build(16, KEY)
    norm = eqx.tree_at(lambda norm: norm.weight, norm, jnp.linspace(-1, 2, 16))
    weight, wide = np.linspace(-1, 2, 16), np.asarray(x, np.float64)

    def formula(x):
        x = x - centred * np.mean(x, -1, keepdims=True)
        return weight * x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 0.5)

    direction, cotangent = np.random.default_rng(0).normal(size=(2, *x.shape))
    slope = (formula(wide + 1e-6 * direction) - formula(wide - 1e-6 * direction)) / 2e-6
    forward = jax.jvp(norm, (x,), (jnp.asarray(direction, jnp.float32),))[1]
    np.testing.assert_allclose(forward, slope, rtol=1e-4, atol=1e-5)
    backward = jax.vjp(norm, x)[1](jnp.asarray(cotangent, jnp.float32))[0]
    np.testing.assert_allclose(np.sum(backward * direction), np.sum(slope * cotangent), rtol=1e-4)


def test_rope_depends_on_differences():
    q, k = jr.normal(KEY, (2, 1, 3, 8))
    places = jnp.asarray([0, 5, 100_000])
    products = [
        jnp.sum(rope(q, p[None]) * rope(k, p[None] + 7), axis=-1).squeeze() for p in places
    ]
    np.testing.assert_allclose(products[1], products[0], atol=1e-5)
    np.testing.assert_allclose(products[2], products[0], atol=0.05)  # angles rounded to float32


def test_rope_computes_its_angles_in_float32():
    """bfloat16 has no 1001: a rotation by a rounded position would be off by a large angle."""
    x = jnp.ones((1, 1, 8))
    low = rope(x.astype(jnp.bfloat16), jnp.asarray([1001]))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), rope(x, jnp.asarray([1001])), atol=0.01)


def test_rope_takes_one_position():
    x = jr.normal(KEY, (4, 2, 8))
    positions = jnp.asarray([3, 1, 4, 1])
    np.testing.assert_array_equal(rope(x[2], positions[2]), rope(x, positions)[2])


@pytest.mark.parametrize("rotary_dim", [None, 3, 10])
def test_rope_errors(rotary_dim):
    with pytest.raises(ValueError, match="even number of features"):
        rope(
            jnp.ones((1, 1, 7 if rotary_dim is None else 8)),
            jnp.zeros((1,), int),
            rotary_dim=rotary_dim,
        )


def test_positions_build_and_encode():
    places = jnp.asarray([0, 1, 70_000])
    fixed = lx.SinusoidalPositionsConfig(base=100.0).build(8, KEY)
    np.testing.assert_array_equal(fixed(places), sinusoidal(places, 8, 100.0))
    exact = np.outer([0, 1, 70_000], 100.0 ** (-np.arange(0, 8, 2) / 8))
    np.testing.assert_allclose(fixed(places)[:, :4], np.sin(exact), atol=0.01)
    with pytest.raises(ValueError, match="even number of features. Received 7"):
        lx.SinusoidalPositionsConfig().build(7, KEY)(places)


def test_a_learned_position_outside_the_table_is_nan():
    learned = lx.LearnedPositionsConfig(max_length=3).build(8, KEY)
    y = learned(jnp.asarray([2, 3, -1, 0]))
    np.testing.assert_array_equal(y[jnp.asarray([0, 3])], learned.table[jnp.asarray([2, 0])])
    assert jnp.isnan(y[1:3]).all()


def test_rms_norm_centred_on_zero(x):
    norm = lx.RMSNormConfig(zero_centered=True).build(16, KEY)
    np.testing.assert_array_equal(norm(x), lx.RMSNormConfig().build(16, KEY)(x))
    half = eqx.tree_at(lambda n: n.weight, norm, jnp.full(16, -0.5))
    np.testing.assert_allclose(half(x), norm(x) / 2, rtol=1e-6)


def test_linear_rope_scaling_brings_positions_closer():
    x, places = jr.normal(KEY, (4, 3, 8)), jnp.arange(4)
    slow = rope(x, 3 * places, scaling=lx.LinearRopeScalingConfig(3.0))
    np.testing.assert_allclose(slow, rope(x, places), atol=1e-6)


def test_llama3_rope_scaling_slows_the_slow_angles_only():
    scaling = lx.Llama3RopeScalingConfig(8.0, 1.0, 4.0, original_length=100)
    turns = np.asarray([0.5, 1.0, 2.5, 4.0, 7.0])  # in the original length
    frequencies = 2 * np.pi * turns / 100
    expected = frequencies * [1 / 8, 1 / 8, (1 + 1 / 8) / 2, 1, 1]
    np.testing.assert_allclose(scaling.apply(frequencies), expected)
    with pytest.raises(ValueError, match="high_frequency"):
        lx.Llama3RopeScalingConfig(low_frequency=4.0, high_frequency=4.0)
