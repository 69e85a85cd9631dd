"""Rows of an array over time, for loops that read and write them in place.

A complex row is one array, real part first, so that to split it off a projection, or to join it for
the next, costs nothing.
"""

from functools import partial

import jax
import jax.numpy as jnp

from .complex_pair import ComplexPair


def rows_of(x):
    """How many rows there are, and how a complex one is joined and split again."""
    length, *state = jax.tree.leaves(x)[0].shape
    if isinstance(x, ComplexPair) and state:
        return length, partial(jnp.concatenate, axis=-1), _split
    return length, _same, _same


def row(t, x):
    index = partial(
        jax.lax.dynamic_index_in_dim, index=t, keepdims=False, allow_negative_indices=False
    )
    return jax.tree.map(index, x)


def set_row(t, x, row):
    return jax.tree.map(lambda x, row: x.at[t].set(row, mode="promise_in_bounds"), x, row)


def select(condition, x, y):
    """A `where` over states, at one position."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), x, y)


def heed(reset, held, new, old):
    """`new`, but `old` where the state is held, and zeros where it is reset."""
    new = new if held is None else select(held, old, new)
    return new if reset is None else select(reset, jax.tree.map(jnp.zeros_like, new), new)


def _split(x):
    return ComplexPair(*jnp.split(x, 2, axis=-1))


def _same(x):
    return x
