"""The rows of an array, read and written in a loop whose index is the same for a whole batch.

A complex row is one array, real part first, so that to split it off a projection, or to join it for
the next, costs nothing.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from .complex_pair import ComplexPair


def rows_of(x):
    """How many rows there are, and how a complex one is joined and split again."""
    length, *state = jax.tree.leaves(x)[0].shape
    if isinstance(x, ComplexPair) and state:
        return length, partial(jnp.concatenate, axis=-1), _split
    return length, _same, _same


def row(t: Int[Array, ""], x: PyTree[Array]) -> PyTree[Array]:
    """`x[t]`, for `t` within bounds."""
    index = partial(
        jax.lax.dynamic_index_in_dim, index=t, keepdims=False, allow_negative_indices=False
    )
    return jax.tree.map(index, x)


def set_row(t: Int[Array, ""], x: PyTree[Array], values: PyTree[Array]) -> PyTree[Array]:
    """`x.at[t].set(values)`, for `t` within bounds, in place where XLA can.

    `jax.vmap` of it stays one slice, rather than a scatter that checks its bounds.
    """
    return jax.tree.map(partial(_setter(0), t), x, values)


def expand(condition: Bool[Array, " time"], like: Array) -> Bool[Array, " time ..."]:
    """A condition per position, with the axes that a `where` beside `like` needs."""
    return condition.reshape(condition.shape + (1,) * (like.ndim - 1))


def blank(mask: Bool[Array, " time"] | None, x: PyTree[Array]) -> PyTree[Array]:
    """`x` with zeros in the rows where `mask` is False."""
    if mask is None:
        return x
    return jax.tree.map(lambda x: jnp.where(expand(mask, x), x, 0.0), x)


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


@cache
def _setter(axis: int):
    def update(t, x, values):
        return jax.lax.dynamic_update_index_in_dim(
            x, values, t, axis, allow_negative_indices=False
        )

    setter = jax.custom_batching.custom_vmap(update)

    @setter.def_vmap
    def rule(size, batched, t, x, values):
        if batched == [False, True, True]:
            return _setter(axis + 1)(t, x, values), True
        in_axes = [0 if is_batched else None for is_batched in batched]
        return jax.vmap(update, in_axes, axis_size=size)(t, x, values), True

    return setter
