"""What in a model is trained, what is only stored, and how much of it there is."""

import equinox as eqx
import jax
from jaxtyping import Array, PyTree


class Buffer(eqx.Module):
    """An array that is saved with the model but not trained: no gradient, no weight decay.

    - `array`: the stored value. Read it through `value`, which stops the gradient.
    """

    array: Array

    @property
    def value(self) -> Array:
        return jax.lax.stop_gradient(self.array)


def trainable(model: PyTree) -> PyTree[bool]:
    """True at every leaf that is trained: the filter for `eqx.partition` and `eqx.filter`."""

    def mark(node: PyTree) -> PyTree[bool]:
        if isinstance(node, Buffer):
            return jax.tree.map(lambda _: False, node)
        return eqx.is_inexact_array(node) or _is_inexact_shape(node)

    return jax.tree.map(mark, model, is_leaf=lambda node: isinstance(node, Buffer))


def count_parameters(model: PyTree) -> int:
    """The number of trained scalars."""
    arrays = eqx.filter(model, trainable(model))
    return sum(leaf.size for leaf in jax.tree.leaves(arrays))


def _is_inexact_shape(leaf: PyTree) -> bool:
    """For skeletons from `eqx.filter_eval_shape`."""
    return isinstance(leaf, jax.ShapeDtypeStruct) and jax.numpy.issubdtype(
        leaf.dtype, jax.numpy.inexact
    )
