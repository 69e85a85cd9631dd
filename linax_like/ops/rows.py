"""The rows of an array, read and written in a loop whose index is the same for a whole batch."""

from functools import cache, partial

import jax
from jaxtyping import Array, Int, PyTree


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
