"""Golden parity of linear attention with one decay per head: flash-linear-attention's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
from golden_numbers import assert_close, load

from linax_like.ops import ssd


def attend(q, k, v, log_decay, state):
    """A batch. Theirs is scaled, and its states are keys by values."""
    one = lambda q, k, v, log_decay, state: ssd(v, log_decay, k, q, state, chunk=8)
    state = jnp.swapaxes(state, -1, -2)
    state, y = jax.vmap(one)(q * q.shape[-1] ** -0.5, k, v, log_decay, state)
    return jnp.swapaxes(state, -1, -2), y


def test_simple_gla():
    data = load("references/fla_simple_gla")
    names = ("q", "k", "v", "g", "initial_state")
    with jax.enable_x64():

        @jax.jit
        def grad(inputs):
            def loss(inputs):
                state, y = attend(*inputs)
                total = jnp.sum(y * data["x/ct"]) + jnp.sum(state * data["x/ct_state"])
                return total, (state, y)

            return jax.grad(loss, has_aux=True)(inputs)

        inputs = tuple(jnp.asarray(data[f"x/{name}"]) for name in names)
        grads, (state, y) = grad(inputs)
        assert_close(y, data["y/o_init"], 1e-10)
        assert_close(state, data["y/final_state_init"], 1e-10)
        for name, got in zip(names, grads, strict=True):
            assert_close(got, data[f"g/{name}"], 1e-9)
        state, y = attend(*inputs[:4], jnp.zeros_like(inputs[4]))
        assert_close(y, data["y/o"], 1e-10)
        assert_close(state, data["y/final_state"], 1e-10)


def test_retention():
    """Its decays are 1 - 2^(-5-h)."""
    data = load("references/fla_retention")
    batch, time, heads, key = data["x/q"].shape
    log_decay = np.broadcast_to(np.log(1 - 2.0 ** (-5 - np.arange(heads))), (batch, time, heads))
    with jax.enable_x64():
        start = jnp.zeros((batch, heads, key, data["x/v"].shape[-1]))

        @jax.jit
        def grad(inputs):
            def loss(inputs):
                y = attend(*inputs, log_decay, start)[1]
                return jnp.sum(y * data["x/ct"]), y

            return jax.grad(loss, has_aux=True)(inputs)

        grads, y = grad(tuple(jnp.asarray(data[f"x/{name}"]) for name in "qkv"))
        assert_close(y, data["y/o"], 1e-10)
        for name, got in zip("qkv", grads, strict=True):
            assert_close(got, data[f"g/{name}"], 1e-9)
