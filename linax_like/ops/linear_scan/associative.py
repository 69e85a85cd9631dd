"""The linear recurrence as a parallel prefix sum, the textbook form of S5; so is its gradient.

The depth is logarithmic in time, but XLA compiles it slowly and moves about ten times the memory
that the recurrence needs.
"""

from functools import partial

import jax
import jax.numpy as jnp

from ..complex_pair import add, multiply, ones_like
from ..rows import heed
from .reference import pull_back


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def associative_scan(a, b, h0, resets, hold, reverse):
    """As `sequential_scan`."""
    a = jax.tree.map(lambda a, b: jnp.broadcast_to(a, b.shape), a, b)
    a = jax.vmap(heed)(resets, hold, a, ones_like(a))
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
    return *pull_back(associative_scan, *residuals, g=g, reverse=reverse), None, None


associative_scan.defvjp(_forward, _backward)
