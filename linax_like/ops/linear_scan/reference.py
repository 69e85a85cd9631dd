"""The linear recurrence by its definition: one position after the other."""

import jax

from ..complex_pair import add, multiply
from ..rows import heed


def sequential_scan(a, b, h0, resets, hold, reverse):
    """`h[t] = a[t] * h[t-1] + b[t]`; at `resets` the coefficient is 0, else at `hold` it is 1."""
    constant = jax.tree.leaves(a)[0].ndim < jax.tree.leaves(b)[0].ndim

    def step(h, inputs):
        a_t, b_t, reset, held = inputs
        h = add(heed(reset, held, multiply(a if constant else a_t, h), h), b_t)
        return h, h

    inputs = (None if constant else a, b, resets, hold)
    return jax.lax.scan(step, h0, inputs, reverse=reverse)[1]
