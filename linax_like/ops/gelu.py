"""GELU(x) = x Φ(x), exactly (Hendrycks & Gimpel, 2016, https://arxiv.org/abs/1606.08415)."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_jvp
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x Φ(x). Its derivative is written out: JAX cannot derive that of erf inside `shard_map`."""
    return x * _normal_cdf(x)


@gelu.defjvp
def _gelu_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    cdf, density = _normal_cdf(x), jnp.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return x * cdf, dx * (cdf + x * density)


def _normal_cdf(x):
    return jax.lax.erfc(-x * math.sqrt(0.5)) / 2
