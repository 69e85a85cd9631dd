"""What a model stores beside what is trained."""

import equinox as eqx
import jax
from jaxtyping import Array


class Buffer(eqx.Module):
    """An array that is saved with the model but not trained: no gradient, no weight decay.

    - `array`: the stored value. Read it through `value`, which stops the gradient.
    """

    array: Array

    @property
    def value(self) -> Array:
        return jax.lax.stop_gradient(self.array)
