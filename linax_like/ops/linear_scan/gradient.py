"""The gradient of the linear recurrence, shared by its backends: another recurrence, run backwards.

With cotangents g of the states and c the effective coefficients (0 at resets, 1 at hold),

    λ[t] = g[t] + conj(c[t+1]) λ[t+1]      db[t] = λ[t]      da[t] = λ[t] conj(h[t-1])

Only the states are stored.
"""

from functools import partial

import jax
import jax.numpy as jnp

from ..complex_pair import conjugate, multiply
from .reference import expand


def with_gradient(scan):
    """`scan` with a gradient that stores only its output."""

    @partial(jax.custom_vjp, nondiff_argnums=(5,))
    def differentiable(a, b, h0, resets, hold, reverse):
        return scan(a, b, h0, resets, hold, reverse)

    def forward(a, b, h0, resets, hold, reverse):
        h = scan(a, b, h0, resets, hold, reverse)
        return h, (a, h, h0, resets, hold)

    def backward(reverse, residuals, g):
        a, h, h0, resets, hold = residuals
        constant = jax.tree.leaves(a)[0].ndim < jax.tree.leaves(h)[0].ndim
        first = -1 if reverse else 0
        # λ: the coefficient of the next position, hence everything shifted by one.
        shift = partial(jax.tree.map, lambda x: jnp.roll(x, 1 if reverse else -1, axis=0))
        coefficients = conjugate(a if constant else shift(a))
        end = jax.tree.map(lambda g: jnp.zeros_like(g[0]), g)
        adjoint = scan(coefficients, g, end, shift(resets), shift(hold), not reverse)

        def da_from(previous, adjoint, resets, hold):
            da = multiply(conjugate(previous), adjoint)
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
        passed = multiply(conjugate(a if constant else jax.tree.map(lambda a: a[first], a)), dh0)
        if hold is not None:
            passed = jax.tree.map(lambda x, y: jnp.where(hold[first], x, y), dh0, passed)
        if resets is not None:
            passed = jax.tree.map(lambda x: jnp.where(resets[first], 0.0, x), passed)
        return da, adjoint, passed, None, None

    differentiable.defvjp(forward, backward)
    return differentiable
