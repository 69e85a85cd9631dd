"""What of a model is trained: all its real arrays but buffers, and what is frozen by name.

A pattern such as `"*/text/*"` freezes every array whose public name it fits (`paths.py`). `"stack/3/*"`
freezes one layer, which may be part of an array that holds several: that array is trained, and its
frozen part put back after every step.
"""

from collections.abc import Sequence
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .parameters import Buffer
from .paths import array_names, array_places, fits, matching, Place


Tree = TypeVar("Tree", bound=PyTree)


def trainable(model: PyTree, frozen: Sequence[str] = ()) -> PyTree[bool]:
    """True at every leaf that is trained: the filter for `eqx.partition` and `eqx.filter`.

    - `frozen`: patterns of names. An array of which they name a part alone is trained: after a step
        that part is put back by `keep_frozen`.

    **Raises:** `ValueError` if a pattern names nothing, or if nothing is left to train.
    """
    marks = jax.tree.map(_mark, model, is_leaf=_is_buffer)
    if not frozen:
        return marks
    still = matching(array_names(model), frozen)
    places = array_places(eqx.filter(model, marks))
    moves = jax.tree.map(lambda place: not still.issuperset(place.names), places)
    if not any(jax.tree.leaves(moves)):
        patterns = ", ".join(f"`{pattern}`" for pattern in frozen)
        raise ValueError(f"{patterns} freeze every array of the model: leave something to train.")
    return eqx.combine(moves, marks)


def keep_frozen(new: Tree, old: PyTree, frozen: Sequence[str]) -> Tree:
    """`new`, with what is frozen as it is in `old`, bit for bit."""

    def keep(place: Place, new: Array, old: Array) -> Array:
        still = np.array([fits(name, frozen) for name in place.names])
        if still.all() or not still.any():
            return old if still.all() else new
        return jnp.where(still.reshape(-1, *[1] * (new.ndim - 1)), old, new)

    return jax.tree.map(keep, array_places(new), new, old) if frozen else new


def count_parameters(model: PyTree) -> int:
    """The number of trained scalars."""
    arrays = eqx.filter(model, trainable(model))
    return sum(leaf.size for leaf in jax.tree.leaves(arrays))


def _is_buffer(node: PyTree) -> bool:
    return isinstance(node, Buffer)


def _mark(node: PyTree) -> PyTree[bool]:
    if _is_buffer(node):
        return jax.tree.map(lambda _: False, node)
    return eqx.is_inexact_array(node) or _is_inexact_shape(node)


def _is_inexact_shape(leaf: PyTree) -> bool:
    """For skeletons from `eqx.filter_eval_shape`."""
    return isinstance(leaf, jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jnp.inexact)
