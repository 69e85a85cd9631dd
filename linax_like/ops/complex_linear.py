"""Between a real signal and a complex state: each projection is one product of real matrices.

into the state      (W₀ + i W₁) x           W₀, W₁ of shape (state, features)
out of the state    Re((W₀ + i W₁) h)       W₀, W₁ of shape (features, state)
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..precision import linear, upcast
from .complex_pair import ComplexPair


_SIGN = np.array([1, -1], np.float32)[:, None, None]  # of the real and the imaginary part


def project_in(
    x: Float[Array, "*time features"], weight: Float[Array, "2 state features"]
) -> ComplexPair:
    """The complex projection of a real signal, shape `(*time, state)`, in at least float32."""
    both = upcast(linear(x, weight.reshape(-1, weight.shape[-1])))
    real, imag = jnp.split(both, 2, axis=-1)
    return ComplexPair(real, imag)


def scale_rows(
    weight: Float[Array, "2 state features"], gain: ComplexPair
) -> Float[Array, "2 state features"]:
    """The matrix of a projection whose results are multiplied by `gain`, shape `(state,)`."""
    turned = weight[::-1] * -_SIGN  # times i
    return gain.real[:, None] * weight + gain.imag[:, None] * turned


def project_out(
    h: ComplexPair, weight: Float[Array, "2 features state"]
) -> Float[Array, "*time features"]:
    """The real part of the complex projection of a state, in the state's dtype."""
    both = jnp.concatenate([h.real, h.imag], axis=-1)
    return linear(both, jnp.moveaxis(weight * _SIGN, 0, 1).reshape(weight.shape[1], -1))
