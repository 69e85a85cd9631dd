"""Register pooling: the mean of a few vectors, by learned weights.

y = Σ_r softmax(w)[r] x[r]
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..initializers import constant
from ..precision import upcast


class RegisterPooling(eqx.Module):
    """Weighs registers; a fresh one takes their mean."""

    weight: Float[Array, " registers"]  # w

    def __init__(self, registers: int):
        self.weight = constant(0, (registers,))

    def __call__(self, x: Float[Array, "registers features"]) -> Float[Array, " features"]:
        shares = jax.nn.softmax(upcast(self.weight))
        return jnp.sum(shares[:, None] * upcast(x), axis=0).astype(x.dtype)
