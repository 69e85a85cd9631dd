"""Random initial values.

All draws go through one jitted function of a few bucketed sizes, so that building a model compiles
next to nothing. Constants are computed with NumPy in float64.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
import jax.core
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray


Shape = tuple[int, ...]


def normal(key: PRNGKeyArray, shape: Shape, std: float = 1.0) -> Float[Array, "..."]:
    """Gaussian of mean 0."""
    return _finish(_draw(key, _bucket(shape), "normal"), shape, std, 0.0)


def truncated_normal(key: PRNGKeyArray, shape: Shape, std: float = 1.0) -> Float[Array, "..."]:
    """Gaussian cut at two standard deviations, scaled to have standard deviation `std` after it."""
    return _finish(_draw(key, _bucket(shape), "truncated"), shape, std / 0.87962566103423978, 0.0)


def uniform(
    key: PRNGKeyArray, shape: Shape, low: float = 0.0, high: float = 1.0
) -> Float[Array, "..."]:
    """Uniform on `[low, high)`."""
    return _finish(_draw(key, _bucket(shape), "uniform"), shape, high - low, low)


def linear_weight(
    key: PRNGKeyArray, in_features: int, out_features: int
) -> Float[Array, "out in"]:
    """A projection that keeps the variance of its input."""
    return normal(key, (out_features, in_features), 1 / math.sqrt(max(in_features, 1)))


def stack(arrays: Sequence[Array]) -> Array:
    """`jnp.stack`, on the host where possible."""
    if any(isinstance(array, jax.core.Tracer) for array in arrays):
        return jnp.stack(arrays)
    return jnp.asarray(np.stack(arrays))


@partial(jax.jit, static_argnums=(1, 2))
def _draw(
    key: PRNGKeyArray, size: int, kind: Literal["normal", "truncated", "uniform"]
) -> Float[Array, " size"]:
    match kind:
        case "normal":
            return jr.normal(key, (size,), jnp.float32)
        case "truncated":
            return jr.truncated_normal(key, -2.0, 2.0, (size,), jnp.float32)
        case "uniform":
            return jr.uniform(key, (size,), jnp.float32)


def _bucket(shape: Shape) -> int:
    """The next power of two, so that models of any size share a few compiled draws."""
    return 1 << max(math.prod(shape) - 1, 63).bit_length()


def _finish(flat: Array, shape: Shape, factor: float, offset: float) -> Array:
    size = math.prod(shape)
    if isinstance(flat, jax.core.Tracer):
        return flat[:size].reshape(shape) * factor + offset
    values = np.asarray(flat)[:size].reshape(shape) * np.float32(factor) + np.float32(offset)
    return jnp.asarray(values)
