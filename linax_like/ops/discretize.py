"""From a diagonal continuous system to a step of it.

h'(t) = λ h(t) + u(t)    →    h[t] = decay · h[t-1] + gain · u[t]

zoh       decay = exp(Δλ)                    gain = (exp(Δλ) - 1) / λ       input constant in a step
bilinear  decay = (1 + Δλ/2) / (1 - Δλ/2)    gain = Δ / (1 - Δλ/2)          trapezoid rule
dirac     decay = exp(Δλ)                    gain = 1                       input an impulse
euler     decay = exp(Δλ)                    gain = Δ                       as in Mamba

Eigenvalues are real arrays, or `ComplexPair`s of them.
"""

import math
from functools import partial
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .complex_pair import (
    ComplexPair,
    conjugate_multiply,
    exp,
    expm1,
    multiply,
    reciprocal,
    scale,
    subtract,
)


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


def discretize_log_decay(
    eigenvalues: ComplexPair, dt: Float[Array, "*#shape"], method: Discretization
) -> ComplexPair:
    """The logarithm of the decay, for Re λ < 0.

    Its phase is within a turn, so that it keeps its precision when it is multiplied by a time.
    """
    scaled = scale(eigenvalues, dt)
    if method == "bilinear":
        scaled = _log_bilinear(scaled)
    phase = scaled.imag - 2 * math.pi * jnp.round(scaled.imag / (2 * math.pi))
    return ComplexPair(scaled.real, phase)


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


def _zoh_gain(eigenvalues: Any, dt: Float[Array, "..."]) -> Any:
    """`(exp(Δλ) - 1) / λ`, which tends to Δ as λ tends to 0."""
    return scale(_relative_expm1(scale(eigenvalues, dt)), dt)


@jax.custom_jvp
def _relative_expm1(z: Any) -> Any:
    """`(exp(z) - 1) / z`, which tends to 1 as z tends to 0."""
    return _divide(expm1(z), z, 1e-12, _one_plus(scale(z, 0.5)))


@_relative_expm1.defjvp
def _relative_expm1_jvp(primals, tangents):
    """`(exp(z) - y) / z`, with y for the result; near 0, where that cancels, its series."""
    (z,), (dz,) = primals, tangents
    y = _relative_expm1(z)
    near = float(jnp.finfo(jax.tree.leaves(z)[0].dtype).eps) ** (2 / 3)
    half = scale(_one_plus(scale(z, 2 / 3)), 0.5)
    return y, multiply(_divide(subtract(exp(z), y), z, near, half), dz)


def _divide(x: Any, z: Any, near: float, limit: Any) -> Any:
    """`x / z`, but `limit` where |z|² is below `near`."""
    squared = sum(part * part for part in jax.tree.leaves(z))
    small = squared < near
    ratio = scale(conjugate_multiply(z, x), 1 / jnp.where(small, 1.0, squared))
    return jax.tree.map(partial(jnp.where, small), limit, ratio)


def _log_bilinear(z: ComplexPair) -> ComplexPair:
    """`log((1 + z/2) / (1 - z/2))`, for Re z < 0."""
    x, y = z.real / 2, z.imag / 2
    above, below = (1 + x) ** 2 + y**2, (1 - x) ** 2 + y**2
    least = jnp.finfo(above.dtype).tiny
    # By its difference from 1 where the fraction is near 1, and by itself where it is near 0.
    far = above < below / 2
    log_of_difference = jnp.log1p(jnp.where(far, 0.0, 4 * x / below))
    squared = jnp.where(
        far, jnp.log(jnp.maximum(above, least)) - jnp.log(below), log_of_difference
    )
    across = jnp.where(above > 0, (1 - x) * (1 + x) - y**2, 1.0)  # nothing has any phase
    return ComplexPair(squared / 2, jnp.arctan2(2 * y, across))


def _one_plus(x: Any) -> Any:
    return ComplexPair(1 + x.real, x.imag) if isinstance(x, ComplexPair) else 1 + x


def _constant(eigenvalues: Any, value: Float[Array, "..."]) -> Any:
    """A real factor for every eigenvalue."""
    shape = jax.tree.leaves(eigenvalues)[0].shape
    real = jnp.broadcast_to(value, jnp.broadcast_shapes(value.shape, shape))
    return (
        ComplexPair(real, jnp.zeros_like(real)) if isinstance(eigenvalues, ComplexPair) else real
    )
