"""Long and short convolutions against their definitions, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P
from meshes import mesh_of

from linax_like.ops import long_conv, short_conv, short_conv_step
from linax_like.ops.fft_size import good_fft_size


RNG = np.random.default_rng(0)
TIME, FEATURES = 17, 3


def convolved(x, kernel):
    """y[t] = Σ_{s ≤ t} kernel[s] x[t-s]."""
    y = np.zeros(x.shape)
    for t in range(len(x)):
        for s in range(min(t + 1, len(kernel))):
            y[t] += kernel[s] * x[t - s]
    return y


@pytest.mark.parametrize("length", [0, 1, 5, TIME, 40])
def test_long_conv_is_its_definition(length):
    x, kernel = RNG.standard_normal((TIME, FEATURES)), RNG.standard_normal((length, FEATURES))
    with jax.enable_x64():
        y = long_conv(jnp.asarray(x), jnp.asarray(kernel))
        assert y.dtype == jnp.float64
        np.testing.assert_allclose(y, convolved(x, kernel), atol=1e-13)
    y = long_conv(jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.float32))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), convolved(x, kernel), rtol=0.05, atol=0.1)


def test_long_conv_of_nothing():
    assert long_conv(jnp.ones((0, 3)), jnp.ones((4, 3))).shape == (0, 3)


@pytest.mark.parametrize("length", [1, 5, TIME, 40])
def test_gradients_of_long_conv_are_its_transposes(length):
    """⟨conv(x, k), w⟩: the gradients are convolutions backwards in time."""
    sizes = (TIME, length, TIME)
    x, kernel, w = (np.float32(RNG.standard_normal((size, 2))) for size in sizes)
    pair = lambda x, kernel: jnp.vdot(long_conv(x, kernel), w)
    dx, dk = jax.jit(jax.grad(pair, argnums=(0, 1)))(x, kernel)
    np.testing.assert_allclose(dx, convolved(w[::-1], kernel)[::-1], atol=2e-5)
    used = min(length, TIME)
    np.testing.assert_allclose(dk[:used], convolved(w[::-1], x)[::-1][:used], atol=2e-5)
    assert not dk[used:].any()


def test_long_conv_holds_few_features_at_a_time():
    """A signal of 2 MiB and its kernel, padded and transformed at once, would take 9 MiB."""
    x, kernel = jnp.ones((4, 1024, 128)), jnp.ones((1024, 128))
    run = jax.jit(jax.vmap(long_conv, (0, None))).lower(x, kernel).compile()
    assert run.memory_analysis().temp_size_in_bytes < 8 * 2**20


def test_good_fft_sizes():
    good = sorted(2**a * 3**b * 5**c for a in range(12) for b in range(8) for c in range(6))
    for least in (1, 2, 7, 11, 17, 97, 121, 1000, 1023, 1025):
        assert good_fft_size(least) == next(size for size in good if size >= least)


# Short convolutions.

WIDTH = 4
WEIGHT = jnp.asarray(RNG.standard_normal((WIDTH, FEATURES)), jnp.float32)
BIAS = jnp.asarray(RNG.standard_normal(FEATURES), jnp.float32)
X = jnp.asarray(RNG.standard_normal((TIME, FEATURES)), jnp.float32)
STATE = jnp.asarray(RNG.standard_normal((WIDTH - 1, FEATURES)), jnp.float32)
MASK = jnp.asarray([1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0, 1, 1, 1, 0], bool)
RESETS = jnp.asarray([0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0], bool)
LAYOUTS = {
    "plain": {},
    "resets": {"resets": RESETS},
    "mask": {"mask": MASK},
    "both": {"resets": RESETS, "mask": MASK},
}


def stepped(x, state, resets=None, mask=None):
    """The definition: step by step, by the caller's rules for documents and padding."""
    ys = []
    for t in range(len(x)):
        if mask is not None and not mask[t]:
            ys.append(jnp.zeros_like(x[t]))
            continue
        if resets is not None and resets[t]:
            state = jnp.zeros_like(state)
        state, y = short_conv_step(x[t], WEIGHT, BIAS, state)
        ys.append(y)
    return state, jnp.stack(ys)


def test_short_conv_is_a_causal_convolution():
    state, y = short_conv(X, WEIGHT, BIAS, jnp.zeros_like(STATE))
    expected = convolved(np.asarray(X), np.asarray(WEIGHT)[::-1]) + np.asarray(BIAS)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(state, X[1 - WIDTH :])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("split", [0, 1, 2, 9, TIME])
def test_short_conv_is_the_fold_of_its_step(layout, split):
    keywords = LAYOUTS[layout]
    first = {name: value[:split] for name, value in keywords.items()}
    second = {name: value[split:] for name, value in keywords.items()}
    middle, y1 = short_conv(X[:split], WEIGHT, BIAS, STATE, **first)
    state, y2 = short_conv(X[split:], WEIGHT, BIAS, middle, **second)
    expected_state, expected = stepped(X, STATE, **keywords)
    real = keywords.get("mask", jnp.ones(TIME, bool))
    y = jnp.concatenate([y1, y2])
    np.testing.assert_allclose(y[real], expected[real], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(state, expected_state)


def loss(x, state, form=short_conv, mask=None, **keywords):
    state, y = form(x, WEIGHT, BIAS, state, mask=mask, **keywords)
    y = y if mask is None else jnp.where(mask[:, None], y, 0)
    return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(state))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_short_conv_gradients(layout):
    keywords = LAYOUTS[layout]
    by_steps = lambda x, weight, bias, state, **keywords: stepped(x, state, **keywords)
    got = jax.grad(loss, argnums=(0, 1))(X, STATE, **keywords)
    expected = jax.grad(loss, argnums=(0, 1))(X, STATE, by_steps, **keywords)
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-5)


def test_short_conv_never_sees_padding():
    dirty = jnp.where(MASK[:, None], X, jnp.nan)
    state, y = short_conv(dirty, WEIGHT, BIAS, STATE, mask=MASK)
    clean_state, clean = short_conv(X[MASK], WEIGHT, BIAS, STATE)
    np.testing.assert_allclose(y[MASK], clean, rtol=1e-6)
    np.testing.assert_array_equal(state, clean_state)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_short_conv_over_devices(layout):
    """Shards shorter than the taps reach, some without a real position, values and gradients."""
    time = 16
    keywords = {name: value[:time] for name, value in LAYOUTS[layout].items()}
    names = tuple(keywords)
    mesh = mesh_of(8, "time")

    def local(x, state, *values):
        context = dict(zip(names, values, strict=True))
        state, y = short_conv(x, WEIGHT, BIAS, state, axis_name="time", **context)
        return state[None], y

    def split(x, weight, bias, state, **keywords):
        keywords = {name: value for name, value in keywords.items() if value is not None}
        specs = (P("time"), P(), *(P("time") for _ in keywords))
        run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P("time"))
        states, y = run(x, state, *(keywords[name] for name in names))
        return states.mean(0), y

    x = X[:time]
    real = keywords.get("mask", jnp.ones(time, bool))
    states, y = jax.jit(split)(x, WEIGHT, BIAS, STATE, **keywords)
    expected_state, expected = short_conv(x, WEIGHT, BIAS, STATE, **keywords)
    np.testing.assert_allclose(states, expected_state, rtol=1e-6)
    np.testing.assert_allclose(y[real], expected[real], rtol=1e-5, atol=1e-6)
    grad = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
    got, expected = grad(x, STATE, split, **keywords), grad(x, STATE, short_conv, **keywords)
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_short_conv_keeps_dtypes_and_takes_nothing(dtype):
    state, y = short_conv(X.astype(dtype), WEIGHT, None, STATE)
    assert (state.dtype, y.dtype) == (jnp.float32, dtype)
    state, y = short_conv(X[:0].astype(dtype), WEIGHT, None, STATE, mask=MASK[:0])
    assert y.shape == (0, FEATURES)
    np.testing.assert_array_equal(state, STATE)


def test_short_conv_of_width_one():
    state, y = short_conv(X, WEIGHT[:1], BIAS, jnp.zeros((0, FEATURES)), mask=MASK, resets=RESETS)
    assert state.shape == (0, FEATURES)
    np.testing.assert_allclose(y[MASK], (WEIGHT[0] * X + BIAS)[MASK], rtol=1e-6)
