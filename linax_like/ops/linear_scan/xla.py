"""The linear recurrence as a loop over the rows of an array, in place; and its gradient as another.

With cotangents g of the states, p what reaches a state from the later ones, and c the effective
coefficients (0 at resets, 1 at hold), from the last position to the first

    db[t] = g[t] + p[t]      da[t] = db[t] conj(h[t-1])      p[t-1] = conj(c[t]) db[t]

Only the states are stored. `jax.lax.scan` would move time to the front: under `jax.vmap` it transposes
its inputs and outputs, which on a CPU takes longer than the recurrence. Derivatives of the gradient
are by `jax.lax.scan`.
"""

from functools import partial

import jax
import jax.numpy as jnp

from ..complex_pair import add, conjugate_multiply, multiply
from ..differentiated import differentiated_as
from ..rows import heed, row, rows_of, select, set_row
from .reference import is_constant, pull_back, sequential_scan


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def in_place_scan(a, b, h0, resets, hold, reverse):
    """As `sequential_scan`."""
    return _forward(a, b, h0, resets, hold, reverse)[0]


def _forward(a, b, h0, resets, hold, reverse):
    definition, fast = (partial(f, reverse=reverse) for f in (sequential_scan, _states))
    h, _ = differentiated_as(definition, fast, a, b, h0, resets, hold)
    return h, (a, h, h0, resets, hold)


def _backward(reverse, residuals, g):
    definition = partial(pull_back, sequential_scan, reverse=reverse)
    fast = partial(_pull_back, reverse=reverse)
    gradients, _ = differentiated_as(definition, fast, *residuals, g)
    return *gradients, None, None


in_place_scan.defvjp(_forward, _backward)


def _states(a, b, h0, resets, hold, reverse):
    rows, join, split = rows_of(b)
    constant = is_constant(a, b)
    inputs, coefficients = join(b), None if constant else join(a)

    def step(i, carry):
        state, states = carry
        at = partial(row, rows - 1 - i if reverse else i)
        h = split(state)
        decayed = multiply(a if constant else split(at(coefficients)), h)
        state = join(add(heed(at(resets), at(hold), decayed, h), split(at(inputs))))
        return state, set_row(rows - 1 - i if reverse else i, states, state)

    start = join(h0), jax.tree.map(jnp.zeros_like, inputs)
    return split(jax.lax.fori_loop(0, rows, step, start)[1]), None


def _pull_back(a, h, h0, resets, hold, g, reverse):
    rows, join, split = rows_of(h)
    constant = is_constant(a, h)
    states, cotangents, coefficients = join(h), join(g), None if constant else join(a)
    first = rows - 1 if reverse else 0

    def step(i, carry):
        passed, da, db = carry
        t = i if reverse else rows - 1 - i
        at = partial(row, t)
        earlier = split(row(jnp.clip(t + 1 if reverse else t - 1, 0, rows - 1), states))
        earlier = select(t == first, h0, earlier)
        adjoint = add(split(at(cotangents)), passed)
        nothing = jax.tree.map(jnp.zeros_like, adjoint)
        slope = heed(at(resets), at(hold), conjugate_multiply(earlier, adjoint), nothing)
        a_t = a if constant else split(at(coefficients))
        passed = heed(at(resets), at(hold), conjugate_multiply(a_t, adjoint), adjoint)
        da = add(da, slope) if constant else set_row(t, da, join(slope))
        return passed, da, set_row(t, db, join(adjoint))

    nothing = jax.tree.map(jnp.zeros_like, (h0, h0 if constant else states, states))
    passed, da, db = jax.lax.fori_loop(0, rows, step, nothing)
    return (da if constant else split(da), split(db), passed), None
