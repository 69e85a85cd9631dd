"""Products of rows and columns with decays between them, against their definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linax_like.ops.decayed_scores import decayed_scores


HEADS, KEY = 2, 3


def definition(rows, columns, log_decay):
    """Every sum by itself."""
    time = log_decay.shape[1]
    scores = np.zeros((len(rows), len(columns), HEADS, time, time))
    for t in range(time):
        for i in range(t + 1):
            decay = np.exp(log_decay[:, i + 1 : t + 1].sum(axis=1))
            scores[..., t, i] = np.einsum(
                "rhc,shc,hc->rsh", rows[:, :, t], columns[:, :, i], decay
            )
    since_start = np.exp(np.cumsum(log_decay, axis=1))
    later = [np.exp(log_decay[:, t + 1 :].sum(axis=1)) for t in range(time)]
    return scores, since_start, np.stack(later, axis=1)


def example(time, log_decay=None, seed=0):
    rng = np.random.default_rng(seed)
    if log_decay is None:
        log_decay = -rng.uniform(0, 1, (HEADS, time, KEY))
    rows, columns = (rng.standard_normal((count, HEADS, time, KEY)) for count in (2, 3))
    return rows, columns, log_decay


@pytest.mark.parametrize("time", [1, 2, 7, 16, 33])
def test_the_definition(time):
    inputs = example(time)
    with jax.enable_x64():
        got = jax.jit(decayed_scores)(*inputs)
    for g, e in zip(got, definition(*inputs), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-13, atol=1e-13)


def test_gradients():
    """By central differences of the definition."""
    inputs = example(7)
    weights = [np.random.default_rng(1).standard_normal(z.shape) for z in definition(*inputs)]

    def total(results):
        return sum((z * weight).sum() for z, weight in zip(results, weights, strict=True))

    with jax.enable_x64():
        f = lambda *inputs: total(decayed_scores(*inputs))
        grads = jax.jit(jax.grad(f, argnums=(0, 1, 2)))(*(jnp.asarray(z) for z in inputs))
    for which, grad in enumerate(grads):
        for index in np.ndindex(grad.shape):
            values = []
            for sign in (1, -1):
                moved = [z.copy() for z in inputs]
                moved[which][index] += sign * 1e-5
                values.append(total(definition(*moved)))
            np.testing.assert_allclose(grad[index], (values[0] - values[1]) / 2e-5, atol=1e-8)


def test_roundings_do_not_depend_on_the_decay():
    """Float32: every score within a few roundings of its own terms, right after a reset as well."""
    time = 64
    rng = np.random.default_rng(2)
    log_decay = rng.choice([-1e-6, -0.01, -1.0, -30.0, -2000.0], (HEADS, time, KEY))
    inputs = tuple(np.float32(z) for z in example(time, log_decay))
    exact = tuple(np.float64(z) for z in inputs)
    got, expected = jax.jit(decayed_scores)(*inputs), definition(*exact)
    terms = definition(np.abs(exact[0]), np.abs(exact[1]), exact[2])
    for g, e, size in zip(got, expected, terms, strict=True):
        assert np.all(np.abs(g - e) <= 1e-5 * size + 1e-30)


def test_bfloat16_sums_in_float32():
    inputs = tuple(jnp.asarray(z, jnp.bfloat16) for z in example(16))
    rows, columns, log_decay = inputs
    scores, *decays = jax.jit(decayed_scores)(rows, columns, log_decay.astype(jnp.float32))
    expected, *_ = definition(*(np.asarray(z, np.float64) for z in inputs))
    assert {z.dtype for z in (scores, *decays)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(scores, expected, atol=0.02 * np.abs(expected).max())
