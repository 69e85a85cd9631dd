"""From a diagonal continuous system to a step of it.

h'(t) = λ h(t) + u(t)    →    h[t] = decay · h[t-1] + gain · u[t]

zoh       decay = exp(Δλ)                    gain = (exp(Δλ) - 1) / λ       input constant in a step
bilinear  decay = (1 + Δλ/2) / (1 - Δλ/2)    gain = Δ / (1 - Δλ/2)          trapezoid rule
dirac     decay = exp(Δλ)                    gain = 1                       input an impulse
euler     decay = exp(Δλ)                    gain = Δ                       as in Mamba

Eigenvalues are real arrays, or `ComplexPair`s of them.
"""

from functools import reduce
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .complex_pair import ComplexPair, exp, expm1, multiply, reciprocal, scale


Discretization = Literal["zoh", "bilinear", "dirac", "euler"]
Eigenvalues = TypeVar("Eigenvalues", Float[Array, "..."], ComplexPair)


def discretize_decay(
    eigenvalues: Eigenvalues, dt: Float[Array, "..."], method: Discretization
) -> Eigenvalues:
    """The factor by which the state decays in a step of length `dt`."""
    scaled = scale(eigenvalues, dt)
    if method != "bilinear":
        return exp(scaled)
    above, below = _one_plus(scale(scaled, 0.5)), _one_plus(scale(scaled, -0.5))
    decay: Any = multiply(above, reciprocal(below))
    return decay


def discretize_gain(
    eigenvalues: Eigenvalues, dt: Float[Array, "..."], method: Discretization
) -> Eigenvalues:
    """The factor by which an input enters the state in a step of length `dt`."""
    match method:
        case "zoh":
            return _zoh_gain(eigenvalues, dt)
        case "bilinear":
            return scale(reciprocal(_one_plus(scale(eigenvalues, -dt / 2))), dt)
        case "dirac":
            return _constant(eigenvalues, jnp.ones_like(dt))
        case "euler":
            return _constant(eigenvalues, dt)


def _zoh_gain(eigenvalues: Eigenvalues, dt: Float[Array, "..."]) -> Eigenvalues:
    """`(exp(Δλ) - 1) / λ`, which tends to Δ as λ tends to 0."""
    scaled = scale(eigenvalues, dt)
    small = reduce(jnp.maximum, map(jnp.abs, jax.tree.leaves(scaled))) < 1e-6
    safe = jax.tree.map(lambda part: jnp.where(small, 1.0, part), scaled)
    ratio, taylor = multiply(expm1(scaled), reciprocal(safe)), _one_plus(scale(scaled, 0.5))
    return scale(jax.tree.map(lambda t, r: jnp.where(small, t, r), taylor, ratio), dt)


def _one_plus(x: Any) -> Any:
    return ComplexPair(1 + x.real, x.imag) if isinstance(x, ComplexPair) else 1 + x


def _constant(eigenvalues: Eigenvalues, value: Float[Array, "..."]) -> Eigenvalues:
    """A real factor for every eigenvalue."""
    shape = jnp.broadcast_shapes(value.shape, jax.tree.leaves(eigenvalues)[0].shape)
    real = jnp.broadcast_to(value, shape)
    if isinstance(eigenvalues, ComplexPair):
        return ComplexPair(real, jnp.zeros_like(real))
    return real
