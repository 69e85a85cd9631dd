"""The linear recurrence by its definition, one position after the other; and its gradient by a scan.

With cotangents g of the states and c the effective coefficients (0 at resets, 1 at hold),

    db[t] = g[t] + conj(c[t+1]) db[t+1]      da[t] = db[t] conj(h[t-1])
"""

from functools import partial

import jax
import jax.numpy as jnp

from ..complex_pair import add, conjugate, conjugate_multiply, multiply
from ..rows import heed


def sequential_scan(a, b, h0, resets, hold, reverse):
    """`h[t] = a[t] * h[t-1] + b[t]`; at `resets` the coefficient is 0, else at `hold` it is 1."""
    constant = is_constant(a, b)

    def step(h, inputs):
        a_t, b_t, reset, held = inputs
        h = add(heed(reset, held, multiply(a if constant else a_t, h), h), b_t)
        return h, h

    inputs = (None if constant else a, b, resets, hold)
    return jax.lax.scan(step, h0, inputs, reverse=reverse)[1]


def pull_back(scan, a, h, h0, resets, hold, g, reverse):
    """The gradients of a, b and h0, by a scan in the other direction."""
    constant = is_constant(a, h)
    first = -1 if reverse else 0
    # The coefficient of the next position, hence everything shifted by one.
    shift = partial(jax.tree.map, lambda x: jnp.roll(x, 1 if reverse else -1, axis=0))
    coefficients = conjugate(a if constant else shift(a))
    end = jax.tree.map(lambda g: jnp.zeros_like(g[0]), g)
    adjoint = scan(coefficients, g, end, shift(resets), shift(hold), not reverse)

    previous = jax.tree.map(
        lambda h, h0: jnp.roll(h, -1 if reverse else 1, axis=0).at[first].set(h0), h, h0
    )
    nothing = jax.tree.map(jnp.zeros_like, adjoint)
    da = jax.vmap(heed)(resets, hold, conjugate_multiply(previous, adjoint), nothing)
    if constant:
        da = jax.tree.map(lambda da: jnp.sum(da, axis=0), da)
    reset, held, a_first, dh0 = jax.tree.map(
        lambda x: x[first], (resets, hold, None if constant else a, adjoint)
    )
    passed = conjugate_multiply(a if constant else a_first, dh0)
    return da, adjoint, heed(reset, held, passed, dh0)


def is_constant(a, states):
    """Whether the coefficients have no time axis."""
    return jax.tree.leaves(a)[0].ndim < jax.tree.leaves(states)[0].ndim
