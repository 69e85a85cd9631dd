"""The delta product: its reference's numbers, and what it is in terms of the delta rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import assert_close, load

from linax_like.ops import delta_product, delta_product_step, delta_rule


UPDATES = 2  # of the golden numbers


@pytest.fixture(scope="module")
def golden():
    return load("references/fla_gated_delta_product")


def arguments(data, prefix="x"):
    """q, k, v, beta and log decay; the reference has all corrections in a row."""
    get = lambda name: jnp.asarray(data[f"{prefix}/{name}"])
    apart = lambda z: z.reshape(len(z), -1, UPDATES, *z.shape[2:])
    return get("q"), apart(get("k")), apart(get("v")), apart(get("beta")), get("g")


def fold(q, k, v, beta, log_decay, s0):
    step = lambda state, inputs: delta_product_step(state, *inputs)
    return jax.lax.scan(step, s0, (q, k, v, beta, log_decay))


@pytest.mark.parametrize("form", [functools.partial(delta_product, chunk=5), fold])
@pytest.mark.parametrize("start", ["", "_init"])
def test_values_are_flas(golden, form, start):
    """It has no scale, and so has ours."""
    with jax.enable_x64():
        s0 = jnp.asarray(golden["x/initial_state"]) * (start == "_init")
        state, y = jax.jit(jax.vmap(form))(*arguments(golden), s0)
        assert_close(y, golden[f"y/o{start}"], 1e-10)
        assert_close(state, golden[f"y/final_state{start}"], 1e-10)


@pytest.mark.parametrize("form", [functools.partial(delta_product, chunk=5), fold])
def test_gradients_are_flas(golden, form):
    def loss(*inputs):
        state, y = jax.vmap(form)(*inputs)
        return jnp.sum(y * golden["x/ct"]) + jnp.sum(state * golden["x/ct_state"])

    with jax.enable_x64():
        inputs = (*arguments(golden), jnp.asarray(golden["x/initial_state"]))
        got = jax.jit(jax.grad(loss, argnums=tuple(range(6))))(*inputs)
        expected = (*arguments(golden, "g"), golden["g/initial_state"])
        for g, e in zip(got, expected, strict=True):
            assert_close(g, e, 1e-9)


@pytest.fixture(scope="module")
def one(golden):
    """One sequence, in float32."""
    return [jnp.asarray(z[0], jnp.float32) for z in arguments(golden)]


def test_one_correction_is_the_delta_rule(one):
    q, k, v, beta, log_decay = one
    got = delta_product(q, k[:, :1], v[:, :1], beta[:, :1], log_decay)
    expected = delta_rule(q, k[:, 0], v[:, 0], beta[:, 0], log_decay)
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_array_equal(g, e)


def test_documents_and_padding_are_of_whole_positions(one):
    """A reset forgets once, before the first correction; padding leaves out all of them."""
    time = len(one[0])
    resets = jnp.arange(time) == 9
    mask = (jnp.arange(time) % 4 != 1) | resets
    real = np.flatnonzero(mask)
    state, y = delta_product(*one, jnp.ones((2, 5, 4)), resets=resets, mask=mask)
    begin = np.searchsorted(real, 9)
    first, second = real[:begin], real[begin:]
    _, y_first = delta_product(*(z[first] for z in one), jnp.ones((2, 5, 4)))
    expected, y_second = delta_product(*(z[second] for z in one))
    np.testing.assert_allclose(state, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(y[real], jnp.concatenate([y_first, y_second]), rtol=1e-5, atol=1e-6)


def test_no_position_is_a_sequence(one):
    s0 = jnp.ones((2, 5, 4))
    state, y = delta_product(*(z[:0] for z in one), s0)
    np.testing.assert_array_equal(state, s0)
    assert y.shape == (0, 2, 4)
