"""Normalisation over features, with statistics in at least float32.

RMSNorm(x)   = w ⊙ x / √(mean(x²) + ε)                    https://arxiv.org/abs/1910.07467
               (1 + w) ⊙ … if centred on zero, as in Gemma
LayerNorm(x) = w ⊙ (x - mean(x)) / √(var(x) + ε) + b      https://arxiv.org/abs/1607.06450
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .config import AbstractConfig, require_positive
from .initializers import constant
from .precision import upcast


@dataclass(frozen=True)
class AbstractNormConfig(AbstractConfig):
    """The hyperparameters of a normalisation."""

    @abc.abstractmethod
    def build(self, in_features: int, key: PRNGKeyArray) -> "AbstractNorm":
        """A new normalisation of width `in_features`."""


@dataclass(frozen=True)
class RMSNormConfig(AbstractNormConfig):
    """Division by the root mean square.

    - `eps`: added to the mean square, so that zero stays zero and its gradient finite.
    - `zero_centered`: the factor is one plus the weight, so that decay draws it to one.
    """

    eps: float = 1e-6
    zero_centered: bool = False

    def __post_init__(self):
        require_positive(self, "eps")

    def build(self, in_features: int, key: PRNGKeyArray) -> "RMSNorm":
        return RMSNorm(in_features, self, key)


@dataclass(frozen=True)
class LayerNormConfig(AbstractNormConfig):
    """Subtraction of the mean, then division by the standard deviation.

    - `eps`: added to the variance, so that a constant input has a finite gradient.
    - `use_bias`: add a learned bias.
    """

    eps: float = 1e-6
    use_bias: bool = True

    def __post_init__(self):
        require_positive(self, "eps")

    def build(self, in_features: int, key: PRNGKeyArray) -> "LayerNorm":
        return LayerNorm(in_features, self, key)


class AbstractNorm(eqx.Module):
    """Normalises the last axis, position by position."""

    in_features: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "*shape features"]) -> Float[Array, "*shape features"]:
        """The normalised input, in its dtype."""

    @abc.abstractmethod
    def flop_count(self, positions: int, inference: bool = False) -> int:
        """Floating-point operations of one pass.

        - `positions`: how many positions it is applied to.
        - `inference`: count the forward pass alone; else the backward pass as well.
        """


class RMSNorm(AbstractNorm):
    """Scale by the root mean square. Nothing is random: the key is not used."""

    config: RMSNormConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    weight: Float[Array, " features"]  # w

    def __init__(self, in_features: int, cfg: RMSNormConfig, key: PRNGKeyArray):
        self.config = cfg
        self.in_features = in_features
        self.weight = constant(0 if cfg.zero_centered else 1, (in_features,))

    def __call__(self, x: Float[Array, "*shape features"]) -> Float[Array, "*shape features"]:
        normal = divide_by_rms(x, self.config.eps)
        factor = self.weight.astype(normal.dtype)
        factor = 1 + factor if self.config.zero_centered else factor
        return (normal * factor).astype(x.dtype)

    def flop_count(self, positions: int, inference: bool = False) -> int:
        forward = 4 * positions * self.in_features
        return forward if inference else 3 * forward


def divide_by_rms(
    x: Float[Array, "*shape features"], eps: float
) -> Float[Array, "*shape features"]:
    """`x / √(mean(x²) + ε)` over the last axis, in at least float32."""
    return _divide(upcast(x), jnp.mean, eps)


def divide_by_norm(
    x: Float[Array, "*shape features"], eps: float
) -> Float[Array, "*shape features"]:
    """`x / √(Σ x² + ε)` over the last axis, in at least float32.

    Zero stays zero, and its gradient finite.
    """
    return _divide(upcast(x), jnp.sum, eps)


def standardize(x: Float[Array, "*shape features"], eps: float) -> Float[Array, "*shape features"]:
    """`(x - mean(x)) / √(var(x) + ε)` over the last axis, in at least float32."""
    wide = upcast(x)
    return divide_by_rms(wide - jnp.mean(wide, axis=-1, keepdims=True), eps)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _divide(x: Float[Array, "*shape features"], total: Callable, eps: float) -> Array:
    """`x / √(total(x²) + ε)`, whose gradient needs the result, and x no more."""
    return x * _factor(x, total, eps)


@_divide.defjvp
def _divide_jvp(total, eps, primals, tangents):
    (x,), (dx,) = primals, tangents
    factor = _factor(x, total, eps)
    y = x * factor
    # Behind the barrier, or XLA keeps it in the shape of x, as the result needed it, for the gradient.
    factor = jax.lax.optimization_barrier(factor)
    return y, factor * dx - y * (factor * total(y * dx, axis=-1, keepdims=True))


def _factor(x, total, eps):
    return jax.lax.rsqrt(total(x * x, axis=-1, keepdims=True) + eps)


class LayerNorm(AbstractNorm):
    """Standardise, then scale and shift. Nothing is random: the key is not used."""

    config: LayerNormConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    weight: Float[Array, " features"]  # w
    bias: Float[Array, " features"] | None  # b

    def __init__(self, in_features: int, cfg: LayerNormConfig, key: PRNGKeyArray):
        self.config = cfg
        self.in_features = in_features
        self.weight = constant(1, (in_features,))
        self.bias = constant(0, (in_features,)) if cfg.use_bias else None

    def __call__(self, x: Float[Array, "*shape features"]) -> Float[Array, "*shape features"]:
        y = standardize(x, self.config.eps)
        y = y * self.weight.astype(y.dtype)
        y = y if self.bias is None else y + self.bias.astype(y.dtype)
        return y.astype(x.dtype)

    def flop_count(self, positions: int, inference: bool = False) -> int:
        forward = (6 if self.bias is None else 7) * positions * self.in_features
        return forward if inference else 3 * forward
