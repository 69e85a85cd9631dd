"""What a model stores beside what is trained."""

import equinox as eqx
import jax
from jaxtyping import Array, PyTree


class Buffer(eqx.Module):
    """An array, or a tree of them, that is saved but not trained: no gradient, no weight decay.

    - `array`: the stored value. Read it through `value`, which stops the gradient.
    """

    array: PyTree[Array]

    @property
    def value(self) -> PyTree[Array]:
        return jax.lax.stop_gradient(self.array)
