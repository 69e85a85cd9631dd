"""Loop carries inside `jax.shard_map` must vary over the same mesh axes as what they meet."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Shaped


def vary_together(*trees: PyTree) -> tuple[PyTree, ...]:
    """The same values, all marked as varying over every mesh axis that any of them varies over."""
    axes = frozenset().union(*(_axes(leaf) for leaf in jax.tree.leaves(trees)))

    def match(leaf: Array) -> Array:
        missing = tuple(axes - _axes(leaf))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(match, trees)


def rows_from(
    x: Shaped[Array, " rows *shape"], start: Int[Array, ""], size: int
) -> Shaped[Array, " size *shape"]:
    """`x[start : start + size]`, for a `start` that may differ between devices, or examples."""
    if size == 0:
        return x[:0]
    x, start = vary_together(x, start)
    # A `where` lays `x` out over an explicit mesh as `start` is, which a gather would not.
    return jax.lax.dynamic_slice_in_dim(jnp.where(start >= 0, x, 0), start, size)


def _axes(leaf: Array) -> frozenset:
    return jax.typeof(leaf).mat.varying
