"""The linear recurrence as a parallel prefix sum, the textbook form of S5; so is its gradient.

With cotangents g of the states and c the effective coefficients (0 at resets, 1 at hold),

    db[t] = g[t] + conj(c[t+1]) db[t+1]      da[t] = db[t] conj(h[t-1])

The depth is logarithmic in time, but XLA compiles it slowly and moves about ten times the memory
that the recurrence needs.
"""

from functools import partial

import jax
import jax.numpy as jnp

from ..complex_pair import add, ComplexPair, conjugate, conjugate_multiply, multiply
from ..rows import expand


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def associative_scan(a, b, h0, resets, hold, reverse):
    """As `sequential_scan`."""
    a = jax.tree.map(lambda a, b: jnp.broadcast_to(a, b.shape), a, b)
    if hold is not None:
        a = _set_where(hold, a, 1.0)
    if resets is not None:
        a = _set_where(resets, a, 0.0)
    first = -1 if reverse else 0
    entering = multiply(jax.tree.map(lambda a: a[first], a), h0)
    b = jax.tree.map(lambda b, h: b.at[first].add(h), b, entering)

    def combine(left, right):
        (a_left, b_left), (a_right, b_right) = left, right
        return multiply(a_right, a_left), add(multiply(a_right, b_left), b_right)

    return jax.lax.associative_scan(combine, (a, b), reverse=reverse)[1]


def _forward(a, b, h0, resets, hold, reverse):
    h = associative_scan(a, b, h0, resets, hold, reverse)
    return h, (a, h, h0, resets, hold)


def _backward(reverse, residuals, g):
    a, h, h0, resets, hold = residuals
    constant = jax.tree.leaves(a)[0].ndim < jax.tree.leaves(h)[0].ndim
    first = -1 if reverse else 0
    # The coefficient of the next position, hence everything shifted by one.
    shift = partial(jax.tree.map, lambda x: jnp.roll(x, 1 if reverse else -1, axis=0))
    coefficients = conjugate(a if constant else shift(a))
    end = jax.tree.map(lambda g: jnp.zeros_like(g[0]), g)
    adjoint = associative_scan(coefficients, g, end, shift(resets), shift(hold), not reverse)

    def da_from(previous, adjoint, resets, hold):
        da = conjugate_multiply(previous, adjoint)
        for gone in (resets, hold):
            if gone is not None:
                zero = lambda da, gone=gone: jnp.where(expand(gone, da), 0.0, da)
                da = jax.tree.map(zero, da)
        return da

    previous = jax.tree.map(
        lambda h, h0: jnp.roll(h, -1 if reverse else 1, axis=0).at[first].set(h0), h, h0
    )
    da = da_from(previous, adjoint, resets, hold)
    if constant:
        da = jax.tree.map(lambda da: jnp.sum(da, axis=0), da)
    dh0 = jax.tree.map(lambda x: x[first], adjoint)
    passed = conjugate_multiply(a if constant else jax.tree.map(lambda a: a[first], a), dh0)
    if hold is not None:
        passed = jax.tree.map(lambda x, y: jnp.where(hold[first], x, y), dh0, passed)
    if resets is not None:
        passed = jax.tree.map(lambda x: jnp.where(resets[first], 0.0, x), passed)
    return da, adjoint, passed, None, None


associative_scan.defvjp(_forward, _backward)


def _set_where(condition, a, value):
    """`a` with the real number `value` where the condition holds."""

    def fill(part, value):
        return jnp.where(expand(condition, part), value, part)

    if isinstance(a, ComplexPair):
        return ComplexPair(fill(a.real, value), fill(a.imag, 0.0))
    return fill(a, value)
