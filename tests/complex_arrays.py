"""Between pairs of real arrays, as the library has them, and complex arrays, as formulas do."""

import jax
import jax.numpy as jnp

from linax_like.ops import ComplexPair


def as_complex(x):
    return jax.lax.complex(x.real, x.imag)


def from_complex(x):
    return ComplexPair(jnp.real(x), jnp.imag(x))
