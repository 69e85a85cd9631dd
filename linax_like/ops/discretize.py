"""From a diagonal continuous system to a step of it.

h'(t) = λ h(t) + u(t)    →    h[t] = decay · h[t-1] + gain · u[t]

zoh       decay = exp(Δλ)                    gain = (exp(Δλ) - 1) / λ       input constant in a step
bilinear  decay = (1 + Δλ/2) / (1 - Δλ/2)    gain = Δ / (1 - Δλ/2)          trapezoid rule
dirac     decay = exp(Δλ)                    gain = 1                       input an impulse
euler     decay = exp(Δλ)                    gain = Δ                       as in Mamba
"""

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .complex_pair import add, ComplexPair, exp, expm1, multiply, reciprocal, scale


Discretization = Literal["zoh", "bilinear", "dirac", "euler"]


def discretize_decay(
    eigenvalues: ComplexPair, dt: Float[Array, "*#shape"], method: Discretization
) -> ComplexPair:
    """The factor by which the state decays in a step of length `dt`."""
    scaled = scale(eigenvalues, dt)
    if method != "bilinear":
        return exp(scaled)
    half = scale(scaled, 0.5)
    return multiply(_one_plus(half, +1), reciprocal(_one_plus(half, -1)))


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
    eigenvalues: ComplexPair, dt: Float[Array, "*#shape"], method: Discretization
) -> ComplexPair:
    """The factor by which an input enters the state in a step of length `dt`."""
    match method:
        case "zoh":
            return _zoh_gain(eigenvalues, dt)
        case "bilinear":
            half = scale(eigenvalues, dt / 2)
            return scale(reciprocal(_one_plus(half, -1)), dt)
        case "dirac":
            return _constant(eigenvalues, jnp.ones_like(dt))
        case "euler":
            return _constant(eigenvalues, dt)


def _zoh_gain(eigenvalues: ComplexPair, dt: Float[Array, "*#shape"]) -> ComplexPair:
    """`(exp(Δλ) - 1) / λ`, which tends to Δ as λ tends to 0."""
    scaled = scale(eigenvalues, dt)
    small = jnp.maximum(jnp.abs(scaled.real), jnp.abs(scaled.imag)) < 1e-6
    safe = ComplexPair(jnp.where(small, 1.0, scaled.real), scaled.imag)
    ratio, taylor = multiply(expm1(scaled), reciprocal(safe)), _one_plus(scale(scaled, 0.5), +1)
    return scale(jax.tree.map(partial(jnp.where, small), taylor, ratio), dt)


def _log_bilinear(z: ComplexPair) -> ComplexPair:
    """`log((1 + z/2) / (1 - z/2))`, for Re z < 0."""
    x, y = z.real / 2, z.imag / 2
    ratio = 4 * x / ((1 - x) ** 2 + y**2)  # |1 + z/2|² / |1 - z/2|² - 1
    real = 0.5 * jnp.log1p(jnp.maximum(ratio, -1 + 1e-6))
    return ComplexPair(real, jnp.arctan2(2 * y, 1 - x**2 - y**2))


def _one_plus(x: ComplexPair, sign: int) -> ComplexPair:
    one = ComplexPair(jnp.ones_like(x.real), jnp.zeros_like(x.imag))
    return add(one, x if sign > 0 else ComplexPair(-x.real, -x.imag))


def _constant(eigenvalues: ComplexPair, value: Float[Array, "*#shape"]) -> ComplexPair:
    real = jnp.broadcast_to(value, jnp.broadcast_shapes(value.shape, eigenvalues.real.shape))
    return ComplexPair(real, jnp.zeros_like(real))
