"""Random initial values.

Building a model compiles next to nothing: keys are split by one program, and all draws of a kind go
through another, of one size. Constants are computed with NumPy in float64.
"""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.core
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray
from numpy.typing import NDArray

from .config import AbstractConfig, require_positive


Shape = tuple[int, ...]
Factor = float | NDArray[np.floating]
Kind = Literal["normal", "truncated", "uniform"]

_BLOCK = 1 << 16  # numbers per draw


def split(key: PRNGKeyArray, count: int) -> list[PRNGKeyArray]:
    """Independent keys."""
    return [jr.fold_in(key, i) for i in range(count)]


def constant(value: ArrayLike, shape: Shape | None = None) -> Float[Array, "..."]:
    """Numbers known beforehand, in float32; broadcast to a shape, if given."""
    values = np.asarray(value, np.float32)
    return jax.device_put(values if shape is None else np.full(shape, values))


def normal(key: PRNGKeyArray, shape: Shape, std: Factor = 1.0) -> Float[Array, "..."]:
    """Gaussian of mean 0; `std` may be an array that broadcasts to the shape."""
    return _finish(_draw(key, shape, "normal"), shape, std, 0.0)


def truncated_normal(key: PRNGKeyArray, shape: Shape, std: float = 1.0) -> Float[Array, "..."]:
    """Gaussian cut at two standard deviations, scaled to have standard deviation `std` after it."""
    return _finish(_draw(key, shape, "truncated"), shape, std / 0.87962566103423978, 0.0)


def uniform(
    key: PRNGKeyArray, shape: Shape, low: float = 0.0, high: float = 1.0
) -> Float[Array, "..."]:
    """Uniform on `[low, high)`."""
    return _finish(_draw(key, shape, "uniform"), shape, high - low, low)


def linear_weight(
    key: PRNGKeyArray, in_features: int, out_features: int
) -> Float[Array, "out in"]:
    """A projection that keeps the variance of its input."""
    return normal(key, (out_features, in_features), 1 / math.sqrt(max(in_features, 1)))


def kaiming_uniform(key: PRNGKeyArray, shape: Shape, in_features: int) -> Float[Array, "..."]:
    """What PyTorch draws for a linear layer's weight and bias: uniform within 1/√in_features."""
    bound = 1 / math.sqrt(max(in_features, 1))
    return uniform(key, shape, -bound, bound)


@dataclass(frozen=True)
class AbstractInitializerConfig(AbstractConfig):
    """How a projection's weight is drawn."""

    @abc.abstractmethod
    def draw(
        self, key: PRNGKeyArray, in_features: int, out_features: int
    ) -> Float[Array, "out in"]:
        """A fresh weight."""


@dataclass(frozen=True)
class TruncatedNormalInitializerConfig(AbstractInitializerConfig):
    """Gaussian cut at two standard deviations, whatever the width.

    - `std`: standard deviation after the cut.
    """

    std: float = 0.02

    def __post_init__(self):
        require_positive(self, "std")

    def draw(
        self, key: PRNGKeyArray, in_features: int, out_features: int
    ) -> Float[Array, "out in"]:
        return truncated_normal(key, (out_features, in_features), self.std)


@dataclass(frozen=True)
class SmallInitializerConfig(AbstractInitializerConfig):
    """Gaussian of standard deviation √(2 / (5 width)) (https://arxiv.org/abs/1910.05895)."""

    def draw(
        self, key: PRNGKeyArray, in_features: int, out_features: int
    ) -> Float[Array, "out in"]:
        return normal(key, (out_features, in_features), math.sqrt(2 / (5 * in_features)))


@dataclass(frozen=True)
class WangInitializerConfig(AbstractInitializerConfig):
    """Gaussian of standard deviation 2 / (num_layers √width), for what writes to a residual stream
    (https://github.com/kingoflolz/mesh-transformer-jax).

    - `num_layers`: how many layers write to it.
    """

    num_layers: int

    def __post_init__(self):
        require_positive(self, "num_layers")

    def draw(
        self, key: PRNGKeyArray, in_features: int, out_features: int
    ) -> Float[Array, "out in"]:
        std = 2 / (self.num_layers * math.sqrt(in_features))
        return normal(key, (out_features, in_features), std)


def step_size_bias(
    key: PRNGKeyArray, shape: Shape, dt_min: float, dt_max: float, dt_floor: float
) -> Float[Array, "..."]:
    """Biases whose softplus is uniform in its logarithm on `[dt_min, dt_max]`, at least `dt_floor`."""
    log_step = uniform(key, shape, math.log(dt_min), math.log(dt_max))
    return _inverse_softplus(log_step, dt_floor)


def stack(arrays: Sequence[Array]) -> Array:
    """`jnp.stack`, on the host where possible."""
    if any(isinstance(array, jax.core.Tracer) for array in arrays):
        return jnp.stack(arrays)
    return jax.device_put(np.stack(arrays))


def rescale(array: Array, factor: float) -> Array:
    """`array * factor`, on the host where possible."""
    if isinstance(array, jax.core.Tracer):
        return array * factor
    return jax.device_put(np.asarray(array) * np.float32(factor))


def _draw(key: PRNGKeyArray, shape: Shape, kind: Kind) -> list[Float[Array, " block"]]:
    """At least as many numbers as the shape holds."""
    blocks = -(-math.prod(shape) // _BLOCK)
    keys = [key] if blocks == 1 else split(key, blocks)
    return [_draw_block(key, kind) for key in keys]


@partial(jax.jit, static_argnums=1)
def _draw_block(key: PRNGKeyArray, kind: Kind) -> Float[Array, " block"]:
    match kind:
        case "normal":
            return jr.normal(key, (_BLOCK,), jnp.float32)
        case "truncated":
            return jr.truncated_normal(key, -2.0, 2.0, (_BLOCK,), jnp.float32)
        case "uniform":
            return jr.uniform(key, (_BLOCK,), jnp.float32)


@jax.jit
def _inverse_softplus(log_step: Float[Array, "..."], floor: ArrayLike) -> Float[Array, "..."]:
    step = jnp.maximum(jnp.exp(log_step), floor)
    return step + jnp.log(-jnp.expm1(-step))


def _finish(blocks: list[Array], shape: Shape, factor: Factor, offset: float) -> Array:
    size = math.prod(shape)
    if any(isinstance(block, jax.core.Tracer) for block in blocks):
        return jnp.concatenate(blocks)[:size].reshape(shape) * factor + offset
    flat = np.concatenate([np.zeros(0, np.float32), *blocks])[:size]
    return jax.device_put(
        flat.reshape(shape) * np.asarray(factor, np.float32) + np.float32(offset)
    )
