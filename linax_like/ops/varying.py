"""Loop carries inside `jax.shard_map` must vary over the same mesh axes as what they meet."""

import jax
from jaxtyping import Array, PyTree


def vary_together(*trees: PyTree) -> tuple[PyTree, ...]:
    """The same values, all marked as varying over every mesh axis that any of them varies over."""
    axes = frozenset().union(*(_axes(leaf) for leaf in jax.tree.leaves(trees)))

    def match(leaf: Array) -> Array:
        missing = tuple(axes - _axes(leaf))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(match, trees)


def _axes(leaf: Array) -> frozenset:
    return jax.typeof(leaf).mat.varying
